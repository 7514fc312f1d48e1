"""Comparisons: intervals and tables on results whose answers are known; cells that are kept, refused or run again."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from orchestrator.bench.cells import (
    Cell,
    CellResult,
    Results,
    Sweep,
    Work,
    add_igd_plus,
    best_value,
    gather,
    is_finished,
    make_cells,
    write_results,
)
from orchestrator.bench.compare import Question, sweep_cells
from orchestrator.bench.document import reading, write_document
from orchestrator.bench.tables import (
    QUALITY,
    as_markdown,
    at_kl,
    cost_table,
    difference_table,
    estimate,
    matched_kl_table,
    paired_difference,
    quality_table,
    sweep_table,
    t_975,
    tuning_table,
)
from orchestrator.cli import main
from orchestrator.errors import BadInput
from orchestrator.files import as_text
from orchestrator.recipes import load_recipe, read_record
from orchestrator.run.evaluate import front_metrics
from orchestrator.run.rundir import RunDir
from rewards.simplex import evaluation_grid

MINIATURE = str(Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml")
GRID = evaluation_grid(2)


def evaluation(step, gain, kl, seed):
    scores = gain * (GRID[:, None] - 0.5) + np.random.default_rng(seed).normal(0, 0.3, (len(GRID), 12, 2))
    return {
        "step": step,
        "seconds": 2.0,
        "preferences": GRID.tolist(),
        **front_metrics(GRID, scores, (-3, -3)),
        "identification_accuracy": 0.6,
        "distinct_responses": 0.985,
        "information_nats": 0.1,
        "kl_to_start": kl,
        "generated_tokens": 100 * step,
    }


def cell(method, seed, *, gain, value=0.3, kl=4.0):
    return CellResult(
        method=method,
        seed=seed,
        knob="beta_c",
        value=value,
        prompts=320,
        generated_tokens=1000,
        learner_tokens=4000 if method == "mi-epo" else 2000,
        seconds=10.0 + seed,
        evaluations=[
            evaluation(0, 0, 0.0, seed),
            evaluation(5, gain / 2, kl / 2, seed),
            evaluation(10, gain, kl, seed),
        ],
    )


def results(*, seeds=(0, 1, 2), tuning=(), sweep=None, other="mo-odpo"):
    return Results(
        recipe="miniature",
        objectives=("helpfulness", "harmlessness"),
        steps=10,
        seeds=seeds,
        methods=("mi-epo", other),
        tune_seed=9 if tuning else None,
        tuning=tuning,
        sweep=sweep,
        cells=[
            cell(method, seed, gain=gain, kl=kl, value=value)
            for seed in seeds
            for method, gain, kl, value in (
                ("mi-epo", 2.0, 4.0, 0.3),
                (other, 3.0, 8.0, 0.1),
                *((name, 4.0, 9.0, 0.3) for name in (sweep.methods if sweep else ()) if "@" in name),
            )
        ],
    )


def test_an_interval_is_students_t():
    found = estimate([1.0, 2.0, 3.0, None, float("nan")])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half_width == pytest.approx(4.303 * 1.0 / math.sqrt(3))
    assert found.show(2) == "2.00 ± 2.48"


def test_one_seed_and_two_have_a_mean_and_no_interval_and_none_has_nothing():
    assert estimate([0.5]).show(2) == "0.50"
    assert estimate([0.9, -0.04]).show(2) == "0.43"
    assert estimate([None]).show(2) == "-"


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.706), (30, 2.042), (40, 2.021), (120, 1.980)])
def test_the_quantile_of_t_is_right_in_and_beyond_the_table(degrees, expected):
    assert t_975(degrees) == pytest.approx(expected, abs=2e-3)


def test_pairing_by_seed_removes_what_the_seeds_share():
    seeds = np.array([0.0, 10.0, 20.0])
    difference = paired_difference(list(seeds + 1.0), list(seeds))
    assert (difference.mean, difference.half_width) == pytest.approx((1.0, 0.0))


def test_a_curve_is_read_where_it_first_reaches_the_kl():
    curve = [(0.0, 0.0), (2.0, 1.0), (4.0, 3.0), (3.0, 9.0)]
    assert at_kl(curve, 1.0) == pytest.approx(0.5)
    assert at_kl(curve, 3.5) == pytest.approx(2.5)
    assert at_kl(curve, 4.5) is None


def test_the_tables_tell_each_method_and_its_difference():
    found = results()
    add_igd_plus(found)
    text = as_text(quality_table(found, QUALITY))
    assert [line.split()[0] for line in text.splitlines()] == ["method", "(start)", "mi-epo", "mo-odpo"]
    assert "MIP ↑" in text and "CRD ↓" in text and "±" in text
    mip = [c.after["mip"] for c in found.of("mo-odpo")]
    assert estimate(mip).show(3) in text
    (_, difference) = difference_table(found, QUALITY)
    expected = paired_difference(mip, [c.after["mip"] for c in found.of("mi-epo")])
    assert difference[1] == expected.show(3) and expected.mean > 0


def test_at_equal_kl_the_method_that_drifts_more_loses_its_advantage():
    head, mi_epo, mo_odpo = matched_kl_table(results(), QUALITY[:1])
    assert head == ["method", "MIP ↑ at 1 nats", "MIP ↑ at 2 nats", "MIP ↑ at 4 nats"]
    after = np.mean([c.after["mip"] for c in results().of("mi-epo")])
    middle = np.mean([c.evaluations[1]["mip"] for c in results().of("mo-odpo")])
    assert float(mi_epo[3].split()[0]) == pytest.approx(after, abs=1e-3)
    assert float(mo_odpo[3].split()[0]) == pytest.approx(middle, abs=1e-3)


def test_a_method_that_never_drifts_so_far_has_no_figure_there():
    found = results()
    for one in found.of("mi-epo"):
        one.after["kl_to_start"] = 3.0
    (_, mi_epo, mo_odpo) = matched_kl_table(found, QUALITY[:1])
    assert mi_epo[3] == "-" and mo_odpo[3] != "-"


def test_without_a_measured_kl_there_is_no_table_of_equal_kl():
    found = results()
    found.cells[0].evaluations[0]["kl_to_start"] = None
    assert matched_kl_table(found, QUALITY) == []


def test_each_method_gets_its_own_best_value():
    tuning = tuple(
        cell(method, 9, gain=gain, value=value)
        for method, value, gain in (
            ("mi-epo", 0.1, 1.0),
            ("mi-epo", 0.3, 2.0),
            ("mo-odpo", 0.03, 0.5),
            ("mo-odpo", 0.1, 2.0),
            ("mo-odpo", 0.3, 1.0),
        )
    )
    assert (best_value(tuning, "mi-epo"), best_value(tuning, "mo-odpo")) == (0.3, 0.1)
    _, *rows = tuning_table(results(tuning=tuning))
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("mi-epo", "beta_c", "0.3 (edge of the grid)"),
        ("mo-odpo", "beta_c", "0.1"),
    ]
    assert rows[0][2].startswith("0.1: ") and f"; 0.3: {tuning[1].after['mip']:.3f} (-, 4.00)" in rows[0][2]


def test_a_judge_the_policy_was_not_trained_on_decides_where_there_is_one():
    careful, exploiting = cell("mi-epo", 9, gain=1.0, value=0.3), cell("mi-epo", 9, gain=2.0, value=0.03)
    assert best_value((careful, exploiting), "mi-epo") == 0.03
    careful.after["audit"], exploiting.after["audit"] = {"mip": 0.5}, {"mip": -0.2}
    assert best_value((careful, exploiting), "mi-epo") == 0.3


def test_a_sweep_shows_each_value_and_shares_the_recipe_s_own_with_the_comparison():
    sweep = Sweep(key="method.beta_w", values=(0.01, 0.1), methods=("mi-epo", "mi-epo@method.beta_w=0.1"))
    found = results(sweep=sweep)
    _, own, other = sweep_table(found, QUALITY[:1])
    assert [own[0], other[0]] == ["0.01 (the recipe's)", "0.1"]
    assert own[1] == quality_table(found, QUALITY[:1])[2][1] != other[1]
    assert sweep_table(results(), QUALITY) == []


def test_the_page_holds_every_table_and_its_figures(tmp_path):
    found = results()
    page = write_document([found], tmp_path / "results.md").read_text()
    for part in ("3 seeds", "Difference to `mi-epo`", "At equal KL", "Cost of a run", "results-miniature-fronts.png"):
        assert part in page
    assert as_markdown(cost_table(found)) in page
    assert "| method | KL to the start (nats) | distinct responses |\n| --- | --- | --- |\n| (start) | 0.00" in page
    assert "| mi-epo | 4.00 ± 0.00 | 98.5% ± 0.0% |" in page
    for name in ("fronts", "control", "distributions", "curves"):
        assert (tmp_path / f"results-miniature-{name}.png").stat().st_size > 10_000


def test_the_reading_counts_a_difference_only_when_its_interval_excludes_zero():
    (sentence,) = reading(results())
    assert sentence.startswith("`mo-odpo` against `mi-epo` is better in MIP and hypervolume, ")
    same = results()
    for one, other in zip(same.of("mo-odpo"), same.of("mi-epo"), strict=True):
        one.evaluations[-1] = dict(other.after)
    nothing = "not told apart in MIP, hypervolume, CRD and information about w."
    assert reading(same) == [f"`mo-odpo` against `mi-epo` is {nothing}"]
    assert reading(results(seeds=(0,))) == ["One seed proves nothing: the spread between seeds is not known."]


def test_the_reading_says_what_the_information_term_and_another_value_of_it_change():
    variant = "mi-epo@method.beta_w=0.1"
    sweep = Sweep(key="method.beta_w", values=(0.01, 0.1), methods=("mi-epo", variant))
    term, swept = reading(results(sweep=sweep, other="mo-odpo-per-objective"))
    assert term.startswith("The information term: `mi-epo` against `mo-odpo-per-objective` is worse in MIP and hyperv")
    assert term.endswith("for 2.0 times the learner tokens.")
    assert swept.startswith("`mi-epo` with method.beta_w = 0.1 against its own value is better in MIP and hypervolume")


def test_a_page_is_made_again_from_results_files_alone(tmp_path, capsys):
    for name in ("a", "b"):
        write_results(tmp_path / f"{name}.json", results())
    files = [str(tmp_path / f"{name}.json") for name in ("a", "b")]
    assert main(["results", *files, "--output", str(tmp_path / "docs" / "page.md")]) == 0
    assert (tmp_path / "docs" / "page.md").read_text().count("# miniature: 2 methods") == 2
    assert len(list((tmp_path / "docs").glob("page-*.png"))) == 8
    assert main(["results", str(tmp_path / "none.json"), "--output", str(tmp_path / "x.md")]) == 2
    assert "none.json: cannot be read" in capsys.readouterr().err


def test_one_seed_and_two_are_told_to_have_no_interval(tmp_path):
    page = write_document([results(seeds=(0,))], tmp_path / "results.md").read_text()
    assert "one seed (no intervals)" in page and " ± 0" not in page
    page = write_document([results(seeds=(0, 1))], tmp_path / "results.md").read_text()
    assert "2 seeds (no intervals)" in page and " ± 0" not in page


def test_results_are_read_back_and_other_files_refused(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, results())
    assert read_record(Results, path) == results()
    path.write_text('{"recipe": "x"}')
    with pytest.raises(BadInput, match=r"objectives, steps, .*: Field required"):
        read_record(Results, path)


def finished_cell(work, cell_):
    path = work.run_path(cell_)
    run = RunDir.create(path, work.recipe(cell_))
    run.describe(status="finished", training={"seconds": 12.5})
    step = {"prompts": 32, "generated_tokens": 500, "learner_tokens": 900, "labels": 4}
    (path / "metrics.jsonl").write_text("".join(json.dumps({"step": s, **step}) + "\n" for s in range(3)))
    records = [evaluation(0, 0, 0.0, 0), evaluation(2, 1, 1.0, 0), evaluation(3, 1, 2.0, 0)]
    (path / "evaluations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_finished_cell_is_kept_and_read(tmp_path):
    work, one = Work(recipe_path=MINIATURE, overrides=(), folder=tmp_path), Cell(method="mo-odpo", seed=1, value=0.1)
    assert not is_finished(work, one)
    finished_cell(work, one)
    assert is_finished(work, one)
    found = gather(work, one)
    assert (found.prompts, found.generated_tokens, found.learner_tokens, found.seconds) == (96, 1500, 2700, 8.5)
    assert found.labels == 12
    assert [side["generated_tokens"] for side in found.evaluations] == [0, 1000, 1500]


def test_a_cell_that_was_killed_does_not_count_as_finished(tmp_path):
    work, one = Work(recipe_path=MINIATURE, overrides=(), folder=tmp_path), Cell(method="mo-odpo", seed=1, value=0.1)
    finished_cell(work, one)
    RunDir.open(work.run_path(one)).describe(status="running")
    assert not is_finished(work, one)


def test_a_finished_cell_of_another_recipe_is_refused(tmp_path):
    one = Cell(method="mo-odpo", seed=1, value=0.1)
    finished_cell(Work(recipe_path=MINIATURE, overrides=(), folder=tmp_path), one)
    with pytest.raises(BadInput, match="was run with another recipe"):
        is_finished(Work(recipe_path=MINIATURE, overrides=("loop.steps=7",), folder=tmp_path), one)


def test_cells_go_seed_by_seed_each_with_its_method_s_value():
    cells = make_cells({"mi-epo": 0.1, "ric": 0.001}, (4, 2))
    assert [c.name for c in cells] == [
        "mi-epo-beta_c0.1-seed4",
        "ric-learning_rate0.001-seed4",
        "mi-epo-beta_c0.1-seed2",
        "ric-learning_rate0.001-seed2",
    ]


def test_a_variant_is_a_method_with_overrides_of_its_own(tmp_path):
    work = Work(recipe_path=MINIATURE, overrides=("loop.steps=7",), folder=tmp_path)
    variant = Cell(method="mi-epo@method.beta_w=0.1@method.min_margin=0.2", seed=1, value=0.1)
    recipe = work.recipe(variant)
    assert (recipe.method.type, recipe.seed, recipe.loop.steps) == ("mi-epo", 1, 7)
    settings = recipe.method.model_dump()
    assert (settings["beta_c"], settings["beta_w"], settings["min_margin"]) == (0.1, 0.1, 0.2)
    assert work.run_path(variant) != work.run_path(Cell(method="mi-epo", seed=1, value=0.1))


def test_a_method_without_beta_c_is_tuned_by_its_learning_rate(tmp_path):
    work = Work(recipe_path=MINIATURE, overrides=(), folder=tmp_path)
    assert work.recipe(Cell(method="ric", seed=1, value=0.004)).learner.learning_rate == 0.004
    question = Question(methods=("ric", "mi-epo"), seeds=(0, 1), grids={"learning_rate": (1e-3, 3e-3)})
    recipe = load_recipe(MINIATURE)
    assert question.values("ric", recipe) == (1e-3, 3e-3)
    assert question.values("mi-epo", recipe) == (0.3,)
    assert question.values("mo-odpo@method.beta_c=0.7", recipe) == (0.7,)


def test_only_the_compared_cells_are_evaluated_on_the_way(tmp_path):
    work = Work(recipe_path=MINIATURE, overrides=("evaluate.every=25",), folder=tmp_path)
    cells = [Cell(method="mi-epo", seed=1, value=0.3, part=part) for part in ("cells", "tuning", "sweep")]
    assert [work.recipe(one).evaluate.every for one in cells] == [25, 0, 0]
    assert len({work.run_path(one) for one in cells}) == 3


def test_a_sweep_runs_every_value_but_the_method_s_own(tmp_path):
    work = Work(recipe_path=MINIATURE, overrides=(), folder=tmp_path)
    question = Question(methods=("mi-epo",), seeds=(4, 5), sweep=("method.beta_w", (0.0, 0.01, 0.1)))
    assert [one.name for one in sweep_cells(question, work, {"mi-epo": 0.2})] == [
        f"mi-epo@method.beta_w={value}-beta_c0.2-seed{seed}" for seed in (4, 5) for value in ("0", "0.1")
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methods": ("ppo@method.beta_w=0",)}, "--methods: must be among .*got 'ppo'"),
        ({"methods": ("mi-epo", "ppo")}, "--methods: must be among .*got 'ppo'"),
        ({"methods": ("mi-epo", "mi-epo")}, "--methods: values must differ"),
        ({"seeds": (1, 1)}, "--seeds: values must differ, got 1 twice"),
        ({"seeds": ()}, "--seeds: needs at least one value"),
        ({"grids": {"learning_rate": (0.1, 0.1)}}, "--learning-rate: values must differ, got 0.1 twice"),
        ({"sweep": ("method.beta_w", (0.0, 0.0))}, "--sweep: values must differ, got 0.0 twice"),
        ({"tune_seed": 0}, "--tune-seed: must not be among the compared seeds, got 0"),
        ({"jobs": 0}, "--jobs: must be >= 1, got 0"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(options, said):
    with pytest.raises(BadInput, match=said):
        Question(**{"methods": ("mi-epo",), "seeds": (0, 1)} | options).check()


def test_a_bad_override_is_refused_before_any_cell_runs(capsys, tmp_path):
    assert main(["compare", MINIATURE, "method.beta_x=1", "--output", str(tmp_path / "c")]) == 2
    assert "method.beta_x: unknown key" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
