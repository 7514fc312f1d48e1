"""Whatever a file or an option holds: one line for each problem, exit code 2, nothing loaded, nothing run from it."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli import main
from orchestrator.recipes import load_recipe
from orchestrator.run.rundir import LAYOUT, CheckpointMeta, RunDir
from tests.test_plan_and_cli import MINIATURE, recipe_tree
from tests.tiny_models import make_tiny_policy

PWNED = Path("/tmp/mi-epo-was-here")
ALIAS_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))

RECIPE_FILES: dict[str, bytes] = {
    "empty": b"",
    "binary": bytes(range(256)),
    "a list": b"- 1\n- 2\n",
    "a tab": b"name:\n\t- x\n",
    "an open bracket": b"name: [1\n",
    "a python object": b"name: !!python/object/apply:os.system ['touch /tmp/mi-epo-was-here']\n",
    "aliases that unfold to billions": ALIAS_BOMB.encode(),
    "nested a hundred thousand deep": b"[" * 100_000,
    "an endless number": b"seed: " + b"9" * 10_000 + b"\n",
    "two documents": b"name: x\n---\nname: y\n",
}
OVERRIDES: dict[str, str] = {
    "no value": "loop",
    "no key": "=1",
    "below a value": "seed.deep=1",
    "an index beyond the end": "objectives.9.name=x",
    "a word as an index": "objectives.x.name=x",
    "broken YAML": "method.beta_c=[1",
    "an empty part": "learner..beta_c=1",
    "a python object": "seed=!!python/object/apply:os.system ['touch /tmp/mi-epo-was-here']",
    "an unknown section": "nonsense.key=1",
    "an unknown key": "method.beta_x=1",
    "a name that is a path": "name=../../outside",
    "a name with a line break": 'name="a\\nb"',
    "a negative seed": "seed=-1",
    "a text as a seed": "seed=zero",
    "a rate that is not a number": "learner.learning_rate=.nan",
    "an infinite rate": "learner.learning_rate=.inf",
    "an infinite beta": "method.beta_c=.inf",
    "beta_c of zero": "method.beta_c=0",
    "a negative beta_w": "method.beta_w=-0.1",
    "alpha of zero": "preferences.alpha=0",
    "too many decimals": "preferences.decimals=9",
    "a vector off the simplex": "preferences.fixed=[0.9, 0.9]",
    "no objectives": "objectives=[]",
    "objectives that are text": "objectives=helpfulness",
    "the same objective twice": "objectives.1.name=helpfulness",
    "an objective name with a slash": "objectives.0.name=a/b",
    "a template without a response": 'objectives.0.scorer={type: huggingface, model: ./x, template: "{prompt}"}',
    "a prompt without weights": 'preferences.conditioning.template="{prompt}"',
    "a file as a server": "objectives.0.scorer={type: http, url: 'file:///etc/passwd'}",
    "another protocol": "objectives.0.scorer={type: http, url: 'ftp://host/x'}",
    "a password in a URL": "objectives.0.scorer={type: http, url: 'http://user:secret@host/x'}",
    "a server without a host": "objectives.0.scorer={type: http, url: 'http://'}",
    "a token instead of its variable": "objectives.0.scorer={type: http, url: 'http://h/', token_env: 'sk-123'}",
    "a function without its module": "objectives.0.scorer.function=system",
    "a function of no module": "objectives.0.scorer.function=no.such.module:f",
    "a function that is none": "objectives.0.scorer.function=math:pi",
    "an unknown scorer": "objectives.0.scorer={type: magic}",
    "a prompt file that is not there": "data.train=/nowhere/x.jsonl",
    "a policy that is not there": "policy.model=/nowhere/model",
    "no steps": "loop.steps=0",
    "micro-batches that hold no example": "learner.micro_batch_tokens=8",
    "an unknown method": "method=ppo",
    "a reference point of another length": "evaluate.reference_point=[-3]",
    "more GPUs than there are": "rollout.num_gpus=1",
    "a prompt longer than the context": "rollout.max_model_len=34",
}
PROMPT_FILES: dict[str, bytes] = {
    "empty": b"",
    "white space": b"\n \n",
    "half a line": b'{"prompt": "a"}\n{"prom',
    "a list": b'["prompt"]\n',
    "another field": b'{"text": "a"}\n',
    "an empty prompt": b'{"prompt": "  "}\n',
    "a number": b'{"prompt": 7}\n',
    "not UTF-8": b'{"prompt": "\xff\xfe"}\n',
    "nested a hundred thousand deep": b"[" * 100_000,
    "an endless number": b'{"prompt": ' + b"9" * 10_000 + b"}\n",
    "gzip that is none": b"\x1f\x8b broken",
    "gzip cut short": gzip.compress(b'{"prompt": "a"}\n' * 100)[:-20],
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    make_tiny_policy(folder / "policy", vocab=100)
    for name in ("train", "heldout"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": f"prompt {i}"}) + "\n" for i in range(8)))
    (folder / "good.yaml").write_text(yaml.safe_dump(recipe_tree(folder)))
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    PWNED.unlink(missing_ok=True)
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.startswith("mi-epo: ") and "Traceback" not in said
    assert len(said) < 2_000 and said.count("\n") <= 12  # with the table of what has no room
    assert not PWNED.exists()
    return said


@pytest.mark.parametrize("case", RECIPE_FILES)
def test_a_recipe_file_is_refused(capsys, tmp_path, case):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(RECIPE_FILES[case])
    assert "recipe.yaml" in refused(capsys, "plan", path)


@pytest.mark.parametrize("case", OVERRIDES)
def test_an_override_is_refused(capsys, workplace, case):
    said = refused(capsys, "plan", workplace / "good.yaml", OVERRIDES[case])
    assert "secret" not in said and "sk-123" not in said


@pytest.mark.parametrize("case", PROMPT_FILES)
def test_a_prompt_file_is_refused(capsys, workplace, tmp_path, case):
    path = tmp_path / ("prompts.jsonl.gz" if "gzip" in case else "prompts.jsonl")
    path.write_bytes(PROMPT_FILES[case])
    assert path.name in refused(capsys, "plan", workplace / "good.yaml", f"data.train={path}")


@pytest.mark.parametrize("form", ["transcripts", "saferlhf"])
@pytest.mark.parametrize("case", PROMPT_FILES)
def test_preference_data_are_refused(capsys, tmp_path, case, form):
    path = tmp_path / ("rows.jsonl.gz" if "gzip" in case else "rows.jsonl")
    path.write_bytes(PROMPT_FILES[case])
    assert path.name in refused(capsys, "prepare", path, tmp_path / "data", "--format", form)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def damaged_run(workplace: Path, path: Path) -> RunDir:
    """A stopped run with one checkpoint, whose learner part is only a claim."""
    recipe = load_recipe(workplace / "good.yaml")
    run = RunDir.create(path, recipe)
    run.start(recipe)
    run.finish("stopped")
    partial = path / "checkpoints" / "partial"
    partial.mkdir(parents=True)
    (partial / "in_flight.json").write_text('{"batches": []}')
    (partial / "state-00000.safetensors").write_bytes(b"not tensors")
    (partial / "learner.json").write_text(json.dumps({"identity": {}, "adam_steps": 1, "files": {}}))
    meta = CheckpointMeta(
        next_step=5,
        policy_version=5,
        objectives=recipe.objective_names,
        policy_model=recipe.policy.model,
        layout=LAYOUT,
        method=recipe.method.type,
    )
    run.publish_checkpoint(partial, meta, keep=2)
    normalizer = {"objectives": list(recipe.objective_names), "mean": [0.0, 0.0], "std": [1.0, 1.0]}
    (path / "normalizer.json").write_text(json.dumps({"reward": normalizer}))
    return run


def break_file(name: str, text: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_text(text)


CHECKPOINT = "checkpoints/step-000005"
RUNS: dict[str, Callable[[Path], Any]] = {
    "a recipe that is none": break_file("config.yaml", "x: 1\n"),
    "a recipe that runs code": break_file("config.yaml", RECIPE_FILES["a python object"].decode()),
    "no description of the checkpoint": lambda run: (run / CHECKPOINT / "meta.json").unlink(),
    "another description": break_file(f"{CHECKPOINT}/meta.json", '{"next_step": 5, "surprise": 1}'),
    "a negative step": break_file(f"{CHECKPOINT}/meta.json", '{"next_step": -5}'),
    "no normaliser": lambda run: (run / "normalizer.json").unlink(),
    "a normaliser of text": break_file("normalizer.json", '{"reward": "x"}'),
    "nothing about what was in flight": lambda run: (run / CHECKPOINT / "in_flight.json").unlink(),
    "nonsense in flight": break_file(f"{CHECKPOINT}/in_flight.json", '{"batches": [{"step": "x"}]}'),
    "no learner": lambda run: (run / CHECKPOINT / "learner.json").unlink(),
    "a learner of another kind": break_file(f"{CHECKPOINT}/learner.json", '{"pickle": "yes"}'),
    "a learner's file elsewhere": break_file(
        f"{CHECKPOINT}/learner.json", '{"identity": {}, "adam_steps": 1, "files": {"../../run.json": "0"}}'
    ),
    "a learner's file with other bytes": break_file(
        f"{CHECKPOINT}/learner.json", '{"identity": {}, "adam_steps": 1, "files": {"state-00000.safetensors": "0"}}'
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_damaged_run_is_refused_before_anything_starts(capsys, workplace, tmp_path, case):
    run = damaged_run(workplace, tmp_path / "run")
    RUNS[case](run.path)
    refused(capsys, "train", workplace / "good.yaml", "--run-dir", run.path)


@pytest.mark.parametrize("text", ["", "[]", '{"recipe": 1}', "[" * 100_000])
def test_a_results_file_is_refused(capsys, tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    said = refused(capsys, "results", tmp_path / "results.json", "--output", tmp_path / "page.md")
    assert "results.json" in said and not (tmp_path / "page.md").exists()


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b'{"objectives": 3}', b'{"x": 1}', b'{"objectives": "\xff"}', b'{"asks_for": 1, "asks_for": 2}'],
)
def test_a_policy_folder_that_says_nonsense_about_its_steering_is_refused(capsys, tmp_path, text):
    (tmp_path / "mi_epo.json").write_bytes(text)
    assert "mi_epo.json" in refused(capsys, "generate", tmp_path, "--prefer", "a=1", "--prompt", "x")


@pytest.mark.parametrize("command", ["fit-policy", "fit-reward"])
@pytest.mark.parametrize("text", ["", "x: 1\n", "data: [\n", "data: /nowhere/rows.jsonl\n"])
def test_the_description_of_a_fit_is_refused(capsys, tmp_path, command, text):
    (tmp_path / "fit.yaml").write_text(text)
    assert "fit.yaml" in refused(capsys, command, tmp_path / "fit.yaml")


def test_the_recipe_that_all_these_are_changes_of_is_good(capsys, workplace):
    assert main(["plan", str(workplace / "good.yaml")]) == 0
    assert MINIATURE.exists() and "Placement" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("objectives.0.scorer={type: python, function: 'subprocess:run'}", "subprocess:run"),
        ("objectives.1.scorer={type: python, function: 'rewardsx.tools:fn'}", "rewardsx.tools:fn"),
        ("objectives.0.scorer={type: http, url: 'http://example.org/score'}", "http://example.org/score"),
        ("evaluate.audit_statistics={count: 'os:listdir'}", "os:listdir"),
    ],
)
def test_a_run_of_someone_else_runs_no_code_and_asks_no_server_unless_told_to(
    capsys, workplace, tmp_path, override, named
):
    recipe = load_recipe(workplace / "good.yaml", [override])
    assert recipe.reaches_outside() == [named]
    run = RunDir.create(tmp_path / "run", recipe)
    make_tiny_policy(run.policy)
    said = refused(capsys, "evaluate", run.path)
    assert named in said and "--recipe" in said


def test_a_recipe_of_our_own_functions_reaches_nowhere():
    assert load_recipe(MINIATURE).reaches_outside() == []
