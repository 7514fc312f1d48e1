"""The report: built from a run directory alone, complete, self-contained and safe against the texts it shows."""

import json
import re
import struct
from html.parser import HTMLParser

import numpy as np
import pytest

from orchestrator.bench.report import write_report
from orchestrator.bench.summary import Row, metric_rows, summary_table
from orchestrator.errors import BadInput
from rewards.bootstrap import prompt_intervals
from rewards.metrics import EVALUATION_METRICS, describe
from rewards.pareto import (
    conditional_covariance,
    conditional_reward_dispersion,
    hypervolume,
    mean_inner_product,
    spearman,
)
from rewards.simplex import evaluation_grid

NAMES = ("helpfulness", "harmlessness", "humor", "brevity")
HOSTILE = '<script src="http://evil.example/x.js"></script> & "quoted" \'single\' <img src=x onerror=alert(1)> $a_b$'


def evaluation(k, step, *, audit=False, prompt="how do i bake bread ?", seed=0):
    """A record as the evaluator writes it: the rewards follow the weights more closely at later steps."""
    rng = np.random.default_rng(seed)
    grid = evaluation_grid(k)
    scores = (grid[:, None] - 1 / k) * (1 + step / 10) + rng.normal(size=(len(grid), 12, k)) / (1 + step / 20)
    names, reference = list(NAMES[:k]), [-3.0] * k

    def front(scores):
        points = scores.mean(1)
        return {
            "points": points.tolist(),
            "covariance": conditional_covariance(scores).tolist(),
            "hypervolume": hypervolume(points, reference),
            "mip": mean_inner_product(grid, points),
            "crd": conditional_reward_dispersion(scores),
            "spearman": [None if np.isnan(value) else float(value) for value in spearman(grid, points)],
            "prompt_intervals": prompt_intervals(grid, scores[:, :, None], reference, rng=np.random.default_rng(1)),
        }

    normalizer = {"objectives": names, "mean": [0.4] * k, "std": [1.3] * k}
    judged = {**front(scores * 0.9), "normalizer": normalizer, "extra": {"ungrammatical_rate": 0.02}} if audit else None
    best = {"judge": "audit", "points": (2 * grid).tolist(), "mip": 2.0, "hypervolume": 30.0} if audit else None
    return {
        "step": step,
        "policy_version": step,
        "objectives": names,
        "preferences": grid.tolist(),
        **front(scores),
        "identification_accuracy": 0.7,
        "response_length": 21.5,
        "missing": 1,
        "reference_point": reference,
        "cloud": [[[None] * k, *rows[:4].tolist()] for rows in scores],
        "audit": judged,
        "attainable": best,
        "normalizer": normalizer,
        "examples": [
            {"prompt": prompt, "preference": w.tolist(), "response": f"answer {step}", "scores": [0.5] * k}
            for w in grid[:: max(1, len(grid) // 4)][:5]
        ],
        "seconds": 3.0,
    }


def step_record(step, k):
    losses = {"loss": None if step == 1 else 1.3 - step / 100, "loss_alignment": 0.6, "loss_identifiability": 0.7}
    seconds = {f"seconds/{name}": 0.5 for name in ("step", "generate", "score", "learn", "sync", "idle_learner")}
    rewards = {f"reward_mean/{name}": 0.1 * step for name in NAMES[:k]}
    return {
        "step": step,
        "policy_version": step + 1,
        **losses,
        "grad_norm": 1.0,
        "identification_accuracy": 0.6,
        "pair_conflict_rate": 0.8,
        "pair_tie_rate": 0.02,
        "logratio_mean": -0.1,
        "prompts": 32,
        "generated_tokens": 1400,
        **rewards,
        **seconds,
    }


def make_run(path, evaluations, steps=0, k=2, name="miniature"):
    path.mkdir(parents=True, exist_ok=True)
    (path / "evaluations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in evaluations))
    (path / "metrics.jsonl").write_text("".join(json.dumps(step_record(step, k)) + "\n" for step in range(steps)))
    run = {"name": name, "method": "mi-epo", "seed": 3, "seconds": 201.4, "versions": {"ray": "2.60.0"}}
    (path / "run.json").write_text(json.dumps(run))
    (path / "config.yaml").write_text(f"policy: {{model: ./policy}}\n# {HOSTILE}\n")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run with an audit judge, three evaluations and hostile texts."""
    evaluations = [evaluation(2, step, audit=True, prompt=HOSTILE, seed=step) for step in (0, 10, 20)]
    for record in evaluations:
        for example in record["examples"]:
            example["response"] = HOSTILE
    path = make_run(tmp_path_factory.mktemp("run"), evaluations, steps=20, name=HOSTILE)
    assert write_report(path)[0] == path / "report" / "report.html"
    return path


def read_summary(path):
    def refuse(constant):
        raise AssertionError(f"summary.json holds {constant}, which is not JSON")

    return json.loads((path / "report" / "summary.json").read_text(), parse_constant=refuse)


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_the_report_folder_holds_every_file_of_the_contract(run):
    names = {"pareto.png", "control.png", "training.png", "summary.json", "report.html"}
    assert {file.name for file in (run / "report").iterdir()} == names
    for name in ("pareto", "control", "training"):
        width, height = png_size(run / "report" / f"{name}.png")
        assert width > 1000 and height > 500


def test_the_summary_holds_the_contracts_keys(run):
    summary = read_summary(run)
    assert {"before", "after", "reference_point", "normalizer", "method", "seed", "seconds"} <= set(summary)
    for side in (summary["before"], summary["after"]):
        assert {"hypervolume", "mip", "crd", "spearman", "points", "preferences"} <= set(side)
        assert len(side["spearman"]) == 2
        assert {"hypervolume", "mip", "crd", "spearman", "points"} <= set(side["audit"])
    assert summary["before"]["step"] == 0 and summary["after"]["step"] == 20
    assert summary["seconds"] == 201.4 and summary["seed"] == 3
    best = summary["after"]["fraction_of_attainable"]
    assert best["judge"] == "audit"
    assert best["mip"] == pytest.approx(summary["after"]["audit"]["mip"] / 2.0)
    assert best["hypervolume"] == pytest.approx(summary["after"]["audit"]["hypervolume"] / 30.0)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_from_outside(run):
    text = (run / "report" / "report.html").read_text()
    page = Page(text)
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert len(links) == 3
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"@import|url\(", text)


def test_hostile_text_is_shown_and_never_run(run):
    page = Page((run / "report" / "report.html").read_text())
    assert page.text.count(HOSTILE) >= 8  # the title, the prompt, the answers before and after, the recipe
    assert all(not key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert {tag for tag, _ in page.tags if tag == "img"} == {"img"}


def test_the_page_shows_both_judges_the_history_and_the_settings(run):
    text = Page((run / "report" / "report.html").read_text()).text
    for words in (
        "By the reward models the policy was trained on",
        "By the audit judge it never saw",
        "share of the attainable",
        "ungrammatical rate",
        "Along the way",
        "(-3, -3), normalised scores",
        "3 min 21 s",
        "ray 2.60.0",
        "640 sampled prompts",
    ):
        assert words in text, words


def test_the_page_defines_every_figure_once_beside_it(run):
    page = Page((run / "report" / "report.html").read_text()).text
    rows = metric_rows(read_summary(run))
    for row in rows:
        first, last = (f"[{row.interval(side)}]" if row.interval(side) else "" for side in (0, 1))
        before, after, change = row.cells()
        figures = f"{before}{first}{after}{last}{change}"
        assert any(f"{row.metric.heading}{definition}{figures}" in page for definition in (row.metric.definition, ""))
        assert page.count(row.metric.definition) == 1 or not row.metric.definition
    assert sum(bool(row.interval(0)) for row in rows) == 2 * 5  # of each judge: MIP, hypervolume, CRD, two Spearmans


def test_a_change_counts_only_where_it_is_larger_than_the_prompts_explain():
    def gain(after, *intervals, key="mip", before=0.2):
        metric = describe(key, table=EVALUATION_METRICS)
        return Row(judge="reward", metric=metric, before=before, after=after, intervals=intervals).gain

    narrow, wide = (0.1, 0.3), (-0.4, 0.8)
    assert gain(0.9, narrow, narrow) == 1 and gain(-0.9, narrow, narrow) == -1
    assert gain(0.9, narrow, narrow, key="crd") == -1
    assert gain(0.3, narrow, narrow) == 0 == gain(0.7, wide, wide)
    assert (
        gain(0.9, narrow, None)
        == 0
        == gain(0.9, narrow, narrow, before=None)
        == gain(9, narrow, narrow, key="kl_to_start")
    )


def test_the_table_tells_before_after_and_change_by_each_judge(run):
    summary = read_summary(run)
    table = summary_table(summary)
    assert {len(row) for row in table} == {4}
    assert table[0] == ["metric", "before", "after", "change"]
    labels = [row[0].strip() for row in table]
    for label in ("MIP", "hypervolume", "CRD", "Spearman, helpfulness", "Spearman, harmlessness"):
        assert labels.count(label) == 2, label
    mip = table[labels.index("MIP")]
    assert mip[1:] == [
        f"{summary['before']['mip']:.3f}",
        f"{summary['after']['mip']:.3f}",
        f"{summary['after']['mip'] - summary['before']['mip']:+.3f}",
    ]
    assert table[labels.index("ungrammatical rate")][1:] == ["2.0%", "2.0%", "+0.0 pts"]


def test_every_prompt_s_answers_stand_by_their_vector_before_beside_after(tmp_path):
    sides = []
    for step in (0, 20):
        two, other = (evaluation(2, step, prompt=prompt) for prompt in ("why do cats purr ?", "what is rain ?"))
        for example in two["examples"]:
            example["response"] = f"cats at {example['preference'][0]:g} by {step}"
        sides.append({**two, "examples": [*two["examples"], *other["examples"]]})
    html = write_report(make_run(tmp_path / "run", sides))[0].read_text()
    assert html.index("why do cats purr ?") < html.index("cats at 1 by 20") < html.index("what is rain ?")
    rows = [row for row in html.split("<tr>") if "cats at" in row]
    found = [[float(row.split("cats at ")[n].split(" by ")[0]) for n in (1, 2)] for row in rows]
    assert len(rows) == 5 and all(before == after for before, after in found)


def test_a_collapsed_policy_is_reported_in_red_and_what_got_better_by_it_is_not_green(tmp_path):
    start, end = evaluation(2, 0), evaluation(2, 10)
    start |= {"mip": 0.26, "crd": 0.36, "distinct_responses": 1.0}
    end |= {"mip": 0.40, "crd": 0.0, "distinct_responses": 0.26, "spearman": [0.3, 0.3], "hypervolume": 0.0}
    told = write_report(make_run(tmp_path, [start, end]))[1].splitlines()[-1]
    assert told == f"collapsed: distinct responses 100.0% → 26.0%, CRD 0.360 → 0.000, Spearman {ranks(start)} → 0.30"
    assert write_report(tmp_path, colored=True)[1].splitlines()[-1] == f"\x1b[31m{told}\x1b[0m"
    assert read_summary(tmp_path)["verdict"]["name"] == "collapsed"
    page = Page((tmp_path / "report" / "report.html").read_text())
    assert told in page.text
    shown = [attributes.get("class", "").split() for _, attributes in page.tags]
    assert ["verdict", "bad"] in shown and ["n", "bad"] in shown and not any("good" in names for names in shown)


def ranks(record):
    return f"{np.mean(record['spearman']):.2f}"


def test_a_steered_policy_is_reported_in_green(tmp_path):
    start, end = evaluation(2, 0), evaluation(2, 20)
    told = write_report(make_run(tmp_path, [start, end]), colored=True)[1].splitlines()[-1]
    assert told.startswith("\x1b[32msteered: MIP ")
    page = Page((tmp_path / "report" / "report.html").read_text())
    shown = [attributes.get("class", "").split() for _, attributes in page.tags]
    assert ["verdict", "good"] in shown and ["n", "good"] in shown


def test_a_single_evaluation_without_training_has_no_before(tmp_path):
    run = make_run(tmp_path, [evaluation(2, 0)])
    with (run / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 10, "obj')  # what a killed run leaves behind is no evaluation
    write_report(run)
    summary = read_summary(run)
    assert summary["before"] is None
    assert summary["after"]["audit"] is None and summary["after"]["fraction_of_attainable"] is None
    assert all(row[1] in ("-", "", "before") and row[3] in ("", "change") for row in summary_table(summary))
    page = Page((run / "report" / "report.html").read_text())
    assert "All figures" in page.text and "before and after" not in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 2


@pytest.mark.parametrize("k", [1, 3, 4])
def test_any_number_of_objectives_gets_its_figures(tmp_path, k):
    run = make_run(tmp_path, [evaluation(k, 0), evaluation(k, 10, audit=k == 3)], k=k)
    write_report(run)
    assert len(read_summary(run)["after"]["spearman"]) == k
    assert all(png_size(run / "report" / f"{name}.png") for name in ("pareto", "control", "training"))


def test_the_front_is_all_a_report_needs(tmp_path):
    record = evaluation(2, 0)
    for key in ("cloud", "audit", "attainable", "examples", "identification_accuracy", "covariance"):
        record[key] = None
    record["spearman"], record["crd"] = [None, None], float("nan")
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(record) + "\n")
    write_report(tmp_path)
    assert read_summary(tmp_path)["after"]["crd"] is None
    assert "CRD" not in {row[0].strip() for row in summary_table(read_summary(tmp_path))}


def test_a_run_without_evaluation_and_a_broken_line_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"evaluations\.jsonl: holds no evaluation"):
        write_report(tmp_path)
    record = json.dumps(evaluation(1, 0))
    (tmp_path / "evaluations.jsonl").write_text(f"{record}\n{{broken\n{record}\n")
    with pytest.raises(BadInput, match=r"evaluations\.jsonl:2: is no JSON"):
        write_report(tmp_path)
