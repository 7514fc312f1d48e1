"""deploy/Dockerfile as far as it can be tried without building it: linted, read, and its steps run on their own."""

import itertools
import os
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from tests.dockerfile import (
    DOCKERFILE,
    STAGES,
    Instruction,
    bash,
    commands,
    context,
    environment,
    flags_of,
    from_context,
    hadolint,
    ignored,
    line_of,
    line_with,
    parse,
    patterns,
    run_line,
    uv_commands,
)
from tests.whole_runs import REPOSITORY

TARGETS = ("cpu", "gpu")
VENV = "/opt/venv"
CACHES = {"HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME"}
MAX_CONTEXT_BYTES = 5_000_000
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE|AUTH|://[^/\s]*@|\bhf_\w{8,}")


def test_the_linter_finds_nothing() -> None:
    done = hadolint(DOCKERFILE.read_text())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("line", "rule"), [("RUN cd /tmp", "DL3003"), ("RUN rm $(ls)", "SC2046")])
def test_the_linter_sees_instructions_and_the_shell_in_them(line: str, rule: str) -> None:
    done = hadolint(f"FROM ubuntu:24.04\n{line}\n")
    assert done.returncode != 0
    assert rule in done.stdout


def test_whatever_the_linter_is_told_to_ignore_has_its_reason_above() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    told = [number for number, line in enumerate(lines) if line.startswith("# hadolint")]
    assert [lines[number] for number in told if not re.match(r"# (?!hadolint)\w", lines[number - 1])] == []
    assert {lines[number] for number in told} <= {"# hadolint ignore=DL3008"}
    assert "DL3008" in lines[told[0] - 1]


def test_lines_are_joined_and_comments_inside_them_left_out() -> None:
    stages = parse("FROM a:1 AS one\nRUN --mount=type=x x \\\n  # why\n  && y\n\nFROM one AS two\nUSER 1\n")
    assert stages["one"].instructions == [Instruction("RUN", {"mount": "type=x"}, "x && y")]
    assert (stages["two"].base, stages["two"].instructions) == ("one", [Instruction("USER", {}, "1")])


@pytest.mark.parametrize("text", ["ARG X=1\nFROM a:1 AS one\n", "FROM a:1\n"])
def test_a_file_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="stage"):
        parse(text)


def test_outside_images_are_named_once_each_by_tag_and_no_address_is_named_at_all() -> None:
    outside = [stage.base for stage in STAGES.values() if stage.base not in {*STAGES, "scratch"}]
    assert len(outside) == len(set(outside))
    names = [re.fullmatch(r"(ubuntu|nvidia/cuda):(\d[\w.-]+)(@sha256:[0-9a-f]{64})?", image) for image in outside]
    assert all(names), outside
    assert "://" not in DOCKERFILE.read_text()
    sources = {copy.flags["from"] for stage in STAGES.values() for copy in stage.of("COPY") if "from" in copy.flags}
    assert sources <= set(STAGES)


def test_the_toolkit_is_of_the_cuda_that_torch_is_built_for() -> None:
    locked = re.search(r"^cuda-toolkit==(\d+\.\d+)\.", (REPOSITORY / "deploy/locks/gpu.txt").read_text(), re.MULTILINE)
    assert locked
    toolkit, gpu = STAGES["toolkit"], STAGES["gpu"]
    versions = {re.search(r":(\d+\.\d+\.\d+)-", stage.base)[1] for stage in (toolkit, gpu)}  # type: ignore[index]
    assert [version.rpartition(".")[0] for version in versions] == [locked[1]]
    home = f"/usr/local/cuda-{locked[1]}"
    assert [line.text for line in toolkit.of("WORKDIR")] == [home]
    assert [copy.text for copy in gpu.of("COPY") if copy.flags.get("from") == "toolkit"] == [f"{home} {home}"]
    found = environment("gpu")
    assert (found["CUDA_HOME"], found["LIBRARY_PATH"]) == (home, f"{home}/lib64/stubs")
    assert any(line.text.find(f"PATH={home}/bin:$PATH") >= 0 for line in gpu.of("ENV"))


def test_every_copied_file_exists_and_reaches_the_build() -> None:
    sources = [source for copy in from_context() for source in copy.copied[0]]
    assert sources
    assert [source for source in sources if not (REPOSITORY / source).exists() or ignored(source)] == []


def test_the_image_installs_the_locks_that_set_up_installs() -> None:
    read = {
        name
        for script in ("setup.sh", "uv.sh")
        for name in re.findall(r"deploy/locks/(\$?\w+)\.txt", (REPOSITORY / "deploy" / script).read_text())
    }
    assert read - {"smollm2"} == {"$extra", "build", "uv"}  # a model's weights stay in an environment, not in an image
    (copy,) = from_context("manifests")
    assert copy.copied == ([f"deploy/locks/{name}.txt" for name in ("uv", "build", *TARGETS)], "/")
    used = {
        source.strip("/").removesuffix(".txt")
        for name in ("builder", "builder-cpu", "builder-gpu")
        for copy in STAGES[name].of("COPY")
        for source in copy.copied[0]
    }
    assert used == {"build", "uv", *TARGETS}


def test_the_image_installs_as_set_up_does() -> None:
    every_call = line_with('"$venv/bin/uv" pip "$@"', "deploy/setup.sh")
    sync = line_with("uv_pip sync", "deploy/setup.sh")
    torch = line_with("--torch-backend cpu", "deploy/setup.sh")
    for command in uv_commands():
        written = " ".join(command)
        if command[1:3] == ["pip", "sync"]:
            assert flags_of(written) == flags_of(sync) | flags_of(every_call)
        elif "--torch-backend" in command:
            assert flags_of(written) == flags_of(torch) | flags_of(every_call)
        assert command[1] != "pip" or "--python /opt/venv/bin/python" in written
        assert command[1] != "pip" or "--build-constraints deploy/locks/build.txt" in written
    bootstrap = line_with("-m pip install", "deploy/uv.sh").partition("||")[0]
    assert flags_of(run_line("builder", "/opt/uv").partition("pip install")[2]) == flags_of(
        bootstrap.partition("pip install")[2]
    )


@pytest.mark.parametrize("command", uv_commands(), ids=lambda command: " ".join(command[1:3]))
def test_the_locked_uv_knows_every_flag_it_is_given(command: list[str]) -> None:
    # Which is answered after the flags before it were understood.
    done = bash(shlex.join([*command, "--help"]), REPOSITORY)
    assert done.returncode == 0, done.stderr


def test_a_flag_that_uv_does_not_know_would_be_noticed() -> None:
    assert "--no-such-flag" in bash("uv pip sync --python x --no-such-flag lock.txt --help", REPOSITORY).stderr


def test_the_interpreter_is_one_that_the_locked_uv_can_fetch_and_the_project_admits() -> None:
    install, venv = [command for command in uv_commands() if command[1] in {"python", "venv"}]
    version = install[-1]
    assert venv[-3:] == ["--python", version, VENV]
    assert re.fullmatch(r"3\.11\.\d+", version)
    assert line_with("requires-python", "pyproject.toml") == 'requires-python = ">=3.11,<3.12"'
    done = bash(f"uv python list --offline --only-downloads --all-versions {version}", REPOSITORY)
    assert f"cpython-{version}-linux-x86_64-gnu " in done.stdout
    for target in TARGETS:
        assert "/opt/python /opt/python" in [copy.text for copy in STAGES[target].of("COPY")]
    assert environment("builder")["UV_PYTHON_INSTALL_DIR"] == "/opt/python"


def test_torch_alone_is_taken_from_the_cpu_lock(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "deploy" / "locks", tmp_path / "deploy" / "locks")
    step, _, _ = run_line("builder-cpu", "awk").partition("&& uv")
    done = bash(step, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    written = (tmp_path / "torch.txt").read_text()
    assert re.fullmatch(r"torch==[\d.]+\+cpu( \\\n +--hash=sha256:[0-9a-f]{64})+\n", written)
    assert written in (REPOSITORY / "deploy" / "locks" / "cpu.txt").read_text()


def test_the_gpu_lock_can_be_had_as_a_whole(tmp_path: Path) -> None:
    assert bash(f"uv venv --offline --python {sys.executable} fresh", tmp_path).returncode == 0
    step = run_line(
        "builder-gpu",
        "uv pip sync",
        **{"uv pip sync": "uv pip sync --dry-run", f"{VENV}/bin/python": f"{tmp_path}/fresh/bin/python"},
    )
    done = bash(f"source deploy/uv.sh; follow_pip_configuration; {step}", REPOSITORY, MI_EPO_VENV=sys.prefix)
    if "Failed to fetch" in done.stderr:
        pytest.skip("asks the package index, which cannot be reached")
    assert done.returncode == 0, done.stderr
    pins = re.findall(r"^[\w.-]+==", (REPOSITORY / "deploy/locks/gpu.txt").read_text(), re.MULTILINE)
    assert f"Would install {len(pins)} packages" in done.stderr


def test_the_project_installs_beside_its_environment_and_starts_from_there(tmp_path: Path) -> None:
    build, out, elsewhere = tmp_path / "build", tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for source, destination in [(f"deploy/locks/{name}.txt", "deploy/locks/") for name in ("uv", "build")] + [
        (source, copy.copied[1]) for copy in from_context("project") for source in copy.copied[0]
    ]:
        target = build / destination / Path(source).name if destination.endswith("/") else build / destination
        target.parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / source).is_dir():
            shutil.copytree(REPOSITORY / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / source, target)
    step = run_line(
        "project",
        "uv pip install",
        **{
            # Isolated, the build would fetch the setuptools that this environment already has.
            "uv pip install": "uv pip install --offline --no-build-isolation",
            f"{VENV}/bin/python": sys.executable,
            "/opt/project": str(out),
        },
    )
    done = bash(step, build)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["bin", "lib"]  # what goes over the environment's own
    site = out / "lib" / "python3.11" / "site-packages"
    rooms = ("actors", "learner", "orchestrator", "rewards")
    sources = {str(path.relative_to(REPOSITORY)) for room in rooms for path in (REPOSITORY / room).rglob("*.py")}
    installed = {str(path.relative_to(site)) for path in site.rglob("*.py")}
    assert installed == sources
    assert len(list(site.rglob("*.pyc"))) == len(sources)
    assert (site / "orchestrator" / "bench" / "templates" / "report.html.j2").exists()
    assert (out / "bin" / "mi-epo").exists()

    (check,) = {run_line(target, "ray --version") for target in TARGETS}
    origin = "python -c 'import orchestrator; print(orchestrator.__file__)'"
    started = bash(f"{check} && {origin}", elsewhere, PYTHONPATH=str(site))
    assert started.returncode == 0, started.stderr
    assert "usage: mi-epo" in started.stdout
    assert started.stdout.splitlines()[-1] == str(site / "orchestrator" / "__init__.py")


def test_the_toolkit_keeps_what_compilers_need_and_loses_the_math_libraries(tmp_path: Path) -> None:
    kept = {
        "bin/nvcc",
        "bin/crt/link.stub",
        "nvvm/bin/cicc",
        "targets/x86_64-linux/include/cublas_v2.h",
        "targets/x86_64-linux/lib/libcudadevrt.a",
        "targets/x86_64-linux/lib/libcudart.so",
        "targets/x86_64-linux/lib/libcudart.so.13",
        "targets/x86_64-linux/lib/libcudart_static.a",
        "targets/x86_64-linux/lib/stubs/libcublas.so",
        "targets/x86_64-linux/lib/stubs/libcuda.so",
    }
    lost = {
        "bin/cuda-gdb-minimal",
        "compute-sanitizer/sanitizer",
        "extras/CUPTI/samples",
        "nsight-compute/ncu",
        "targets/x86_64-linux/lib/libcublas.so.13",
        "targets/x86_64-linux/lib/libcublas_static.a",
    }
    for name in kept | lost:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "targets/x86_64-linux/lib/libcublas.so").symlink_to("libcublas.so.13")
    for name in ("include", "lib"):
        (tmp_path / name.replace("lib", "lib64")).symlink_to(f"targets/x86_64-linux/{name}")
    done = bash(run_line("toolkit", "find"), tmp_path)
    assert done.returncode == 0, done.stderr
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert left == kept | {"include", "lib64"}


def test_the_probe_compiles_a_kernel_and_the_headers_of_the_math_libraries(tmp_path: Path) -> None:
    (tmp_path / "nvcc").write_text('#!/bin/sh\ntouch "$5" && cat "$6" && echo "$@"\n')
    (tmp_path / "nvcc").chmod(0o755)
    step = run_line("gpu", "nvcc", **{"/tmp/": f"{tmp_path}/"})
    done = bash(step, tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    *headers, kernel, arguments = done.stdout.splitlines()
    assert all(re.fullmatch(r"#include <[\w/]+\.(h|cuh)>", line) for line in headers)
    assert {"#include <cublas_v2.h>", "#include <cub/cub.cuh>"} < set(headers)
    assert "__global__" in kernel
    assert arguments.startswith("-shared -Xcompiler -fPIC -o ")
    assert [path.name for path in tmp_path.iterdir()] == ["nvcc"]


def test_nothing_that_looks_like_a_secret_is_declared() -> None:
    declared = [f"{line.keyword} {line.text}" for stage in STAGES.values() for line in stage.instructions]
    declared = [line for line in declared if line.startswith(("ARG ", "ENV "))]
    assert declared
    assert [line for line in declared if SECRET.search(line)] == []


@pytest.mark.parametrize("line", ["ENV WANDB_API_KEY=x", "ARG HF_TOKEN", "ENV INDEX=https://me:pw@host/simple"])
def test_a_secret_would_be_noticed(line: str) -> None:
    assert SECRET.search(line)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_its_own_user_and_starts_nothing_by_itself(target: str) -> None:
    stages = line_of(target)
    assert [user.text for stage in stages for user in stage.of("USER")] == ["1000:1000"]
    assert [line for stage in stages for line in stage.of("ENTRYPOINT")] == []
    assert [line.text for line in STAGES[target].of("CMD")] == ['["python", "-m", "orchestrator", "--help"]']
    *_, user = [line for line in STAGES[target].instructions if line.keyword in {"USER", "COPY"}]
    assert user.keyword == "USER", "what is copied belongs to root: a run cannot change its own code"


@pytest.mark.parametrize("target", TARGETS)
def test_the_user_owns_its_home_the_working_folder_and_the_caches(target: str) -> None:
    made = {command[0]: command for command in commands(STAGES[target].of("RUN")[0])}
    assert made["useradd"][-1] == "mi-epo"
    assert {"--create-home", "--uid", "--gid", "1000"} <= set(made["useradd"])
    assert made["groupadd"] == ["groupadd", "--gid", "1000", "mi-epo"]
    *flags, folder, cache = made["install"][1:]
    assert (set(flags), folder, cache) == ({"--directory", "--owner=1000", "--group=1000"}, "/app", "/cache")
    assert [line.text for line in STAGES[target].of("WORKDIR")] == [folder]
    found = environment(target)
    assert found["HOME"] == "/home/mi-epo"
    assert {Path(found[name]).parts[:2] for name in CACHES} == {("/", "cache")}


@pytest.mark.parametrize("target", TARGETS)
def test_the_environment_comes_first_on_the_path_and_ray_is_told_to_leave_it_alone(target: str) -> None:
    found = environment(target)
    assert found["PATH"] == f"{VENV}/bin:$PATH"
    assert found["RAY_USAGE_STATS_ENABLED"] == "0"
    assert found["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"
    assert found["DS_BUILD_OPS"] == environment("builder")["DS_BUILD_OPS"] == "0"


def test_both_targets_are_the_same_but_for_the_engine_and_cuda() -> None:
    shared = {
        target: [
            (
                line.keyword,
                *(text.replace(f"builder-{target}", "builder-*") for text in (*line.flags.values(), line.text)),
            )
            for line in STAGES[target].instructions
            if "cuda" not in line.text
        ]
        for target in TARGETS
    }
    engines = {"cpu": "the CPU engine", "gpu": "the CUDA engine"}
    for target, lines in shared.items():
        (label,) = [number for number, line in enumerate(lines) if line[0] == "LABEL"]
        assert engines[target] in lines[label][1]
        lines[label] = ("LABEL", lines[label][1].replace(engines[target], "*"))
    assert shared["cpu"] == shared["gpu"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_change_of_the_code_leaves_the_environments_as_they_are(target: str) -> None:
    assert from_context("builder", f"builder-{target}") == []
    order = [
        copy.flags.get("from", "context") for copy in STAGES[target].of("COPY") if copy.flags.get("from") != "toolkit"
    ]
    assert order == ["builder", f"builder-{target}", "context", "project"]
    assert [copy.copied[0] for copy in from_context(target)] == [["deploy/recipes"]]
    after = list(itertools.dropwhile(lambda line: line.flags.get("from") != "project", STAGES[target].instructions))
    assert [line.keyword for line in after] == ["COPY", "USER", "RUN", "ARG", "ARG", "ENV", "LABEL", "CMD"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_labels_say_which_version_and_revision_was_built(target: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert [line.text for line in STAGES[target].of("ARG")] == [f"VERSION={project['version']}", "REVISION=unknown"]
    (label,) = STAGES[target].of("LABEL")
    labels = dict(pair.split("=", 1) for pair in shlex.split(label.text))
    said = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert (said["version"], said["revision"]) == ("$VERSION", "$REVISION")
    assert STAGES[target].of("ENV")[-1].text == "MI_EPO_REVISION=$REVISION"  # for run.json
    assert (said["title"], said["licenses"]) == (project["name"], project["license"])


def test_downloads_are_kept_between_builds_and_out_of_the_layers() -> None:
    for stage in STAGES.values():
        for line in stage.of("RUN"):
            for tool in {"pip", "uv"} & set(re.findall(r"(?:^|&& |-m )(pip|uv) (?:install|pip)", line.text)):
                assert line.flags.get("mount") == f"type=cache,target=/root/.cache/{tool}", line.text


def test_the_build_is_sent_little() -> None:
    sent = list(context())
    assert Path("pyproject.toml") in sent
    assert sum((REPOSITORY / path).stat().st_size for path in sent) < MAX_CONTEXT_BYTES


def test_what_stays_out_of_a_job_stays_out_of_an_image() -> None:
    first, _, _ = (REPOSITORY / ".dockerignore").read_text().partition("\n\n")
    shared = [line.removeprefix("**/") for line in first.splitlines() if not line.startswith("#")]
    assert shared == patterns(".rayignore")


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("runs/first/metrics.jsonl", True),
        ("comparisons/miniature/results.json", True),
        ("wandb/run-1/files", True),
        (".venv/bin/python", True),
        ("orchestrator/tasks/miniature/__pycache__/build.cpython-311.pyc", True),
        ("mi_epo.egg-info/PKG-INFO", True),
        ("deploy/.env", True),
        ("tests/test_image.py", True),
        ("orchestrator/tasks/miniature/build.py", False),
        ("deploy/recipes/miniature.yaml", False),
        ("pyproject.toml", False),
    ],
)
def test_the_ignore_file_keeps_out_outputs_and_credentials_alone(path: str, out: bool) -> None:
    assert ignored(path) is out
