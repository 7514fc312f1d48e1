"""Runs that lose parts of themselves at random moments end exactly as undisturbed ones. Real actors, two Ray nodes."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import Outcome, TwoNodes, as_table, disturb, draw_kills
from tests.whole_runs import REPOSITORY, assert_same_results, command, failures, tiny_recipe

STEPS = 50
KILLS = int(os.environ.get("CHAOS_KILLS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
DEADLINE_S = 240
"""Longest wait for anything: a lost node, an engine that loads, a deadline missed by what was stopped."""
OVERRIDES = (
    "loop.checkpoint_every=5",
    "telemetry.wandb=disabled",
    "rollout.generate_timeout_s=20",
    "learner.step_timeout_s=20",
    "learner.sync_timeout_s=15",
    "cluster.max_failures=100",
)
CASES = (("mi-epo", 0), ("mi-epo", 1), ("raco", 1), ("ric", 0))
"""Strictly on-policy, with a batch in flight, with combined gradients, and with half a run's batches in flight."""
MINIATURE = (
    "loop.prompts_per_step=16",
    "evaluate.prompts=4",
    "evaluate.samples=2",
    "evaluate.identification_responses=16",
    "evaluate.information_responses=16",
)


@pytest.fixture
def nodes() -> Iterator[TwoNodes]:
    nodes = TwoNodes(cpus_per_node=1)
    yield nodes
    nodes.close()


def undisturbed(recipe: Path, run: Path, *overrides: str) -> Path:
    subprocess.run(
        command("train", recipe, *overrides, "--run-dir", run),
        cwd=REPOSITORY,
        check=True,
        timeout=900,
        stdout=subprocess.DEVNULL,
    )
    return run


@pytest.mark.ray
@pytest.mark.full
def test_a_run_that_loses_an_engine_a_judge_and_a_rank_ends_as_if_it_had_not(nodes, tmp_path):
    recipe, overrides = tiny_recipe(tmp_path), (*OVERRIDES, f"loop.steps={STEPS}", "loop.max_staleness=0")
    kinds = [(role, "SIGKILL") for role in ("rollout", "reward", "learner")]
    kills = draw_kills(3, seed=0, kinds=kinds)
    run = tmp_path / "run"
    asked = command("train", recipe, *overrides, "--run-dir", run)
    outcomes = disturb(asked, run, kills, nodes, steps=STEPS, deadline_s=DEADLINE_S)
    assert len(outcomes) == 3 and not kills
    lost = [failure["component"] for failure in failures(run)]
    assert lost.count("the run") == 1 and "rollout-0" in lost  # everything again for the rank alone
    expected = undisturbed(recipe, tmp_path / "undisturbed", *overrides)
    assert_same_results(run, expected)
    assert not failures(expected)


@pytest.mark.chaos
@pytest.mark.parametrize(("method", "staleness"), CASES)
def test_the_miniature_survives_random_kills(nodes, tmp_path, method, staleness):
    recipe, case = REPOSITORY / "deploy" / "recipes" / "miniature.yaml", CASES.index((method, staleness))
    chosen = (f"method={method}", f"loop.max_staleness={staleness}", f"loop.steps={STEPS}", "rollout.engines=2")
    overrides = (*OVERRIDES, *MINIATURE, *chosen)
    kills = draw_kills(KILLS // len(CASES) + (case < KILLS % len(CASES)), SEED + case)
    expected = undisturbed(recipe, tmp_path / "undisturbed", *overrides)
    assert not failures(expected)
    outcomes: list[Outcome] = []
    while kills:
        run = tmp_path / f"{method}-staleness{staleness}-{len(outcomes)}"
        asked = command("train", recipe, *overrides, "--run-dir", run)
        outcomes += disturb(asked, run, kills, nodes, steps=STEPS, deadline_s=DEADLINE_S)
        assert_same_results(run, expected)
        print(f"{run.name}: as undisturbed")
    print(as_table(outcomes))
