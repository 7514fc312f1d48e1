"""RUN/report/: three figures, summary.json and one self-contained report.html, built from the files of a run directory.

Consumes evaluations.jsonl (at least one line), metrics.jsonl, run.json and config.yaml; the last three may be missing
or empty. With one evaluation there is no "before". Nothing here needs Ray, torch or the policy.
"""

import base64
import json
from pathlib import Path

from orchestrator.bench.summary import metric_rows, summarize, summary_table
from orchestrator.bench.verdict import judge_training
from orchestrator.errors import BadInput
from orchestrator.files import Record, as_text, read_lines
from orchestrator.trees import parse_yaml
from rewards.metrics import EVALUATION_METRICS, describe

FIGURES = ("pareto", "control", "training")
HISTORY = ("mip", "hypervolume", "crd", "identification_accuracy", "response_length")


def write_report(run_dir: Path, *, colored: bool = False) -> tuple[Path, str]:
    """Write RUN/report/; returns the path of report.html and the table before and after as text, the verdict below it.

    `colored`: the verdict in a terminal's green or red.

    Raises:
        BadInput: there is nothing to report.
    """
    run_dir = Path(run_dir)
    evaluations, metrics = _read(run_dir)
    folder = _draw(run_dir, evaluations, metrics)["pareto"].parent
    run = _read_json(run_dir / "run.json")
    summary = summarize(evaluations[0] if len(evaluations) > 1 else None, evaluations[-1], run)
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")
    html = _render(run_dir, summary, evaluations, metrics, run)
    (folder / "report.html").write_text(html, encoding="utf-8")
    return folder / "report.html", as_text(summary_table(summary)) + _say_verdict(summary, colored)


def draw_figures(run_dir: Path) -> dict[str, Path]:
    """Write the figures of RUN/report/; returns them by name. Raises BadInput: there is nothing to draw."""
    return _draw(run_dir, *_read(run_dir))


def _read(run_dir: Path) -> tuple[list[Record], list[Record]]:
    """(evaluations, metrics)"""
    evaluations = read_lines(run_dir / "evaluations.jsonl")
    if not evaluations:
        raise BadInput(f"{run_dir / 'evaluations.jsonl'}: holds no evaluation to report")
    return evaluations, read_lines(run_dir / "metrics.jsonl")


def _draw(run_dir: Path, evaluations: list[Record], metrics: list[Record]) -> dict[str, Path]:
    from orchestrator.bench.figures.evaluation import plot_control, plot_pareto
    from orchestrator.bench.figures.training import plot_training

    before, after = (evaluations[0] if len(evaluations) > 1 else None), evaluations[-1]
    folder = run_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.png" for name in FIGURES}
    plot_pareto(files["pareto"], before, after)
    plot_control(files["control"], before, after)
    plot_training(files["training"], metrics, after["objectives"], after.get("normalizer"))
    return files


def _say_verdict(summary: Record, colored: bool) -> str:
    verdict = judge_training(summary["before"], summary["after"])
    if verdict is None:
        return ""
    return "\n" + (f"\x1b[{32 if verdict.good else 31}m{verdict.line}\x1b[0m" if colored else verdict.line)


def _render(run_dir: Path, summary: Record, evaluations: list[Record], metrics: list[Record], run: Record) -> str:
    import jinja2

    from orchestrator.bench.figures.style import objective_color

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    config_file = run_dir / "config.yaml"
    config_text = config_file.read_text(encoding="utf-8") if config_file.is_file() else ""
    images = {name: _data_uri(run_dir / "report" / f"{name}.png") for name in FIGURES}
    return environment.get_template("report.html.j2").render(
        title=run.get("name") or run_dir.resolve().name,
        sentence=_sentence(summary, metrics, run, config_text),
        summary=summary,
        verdict=judge_training(summary["before"], summary["after"]),
        rows=metric_rows(summary),
        judges={"reward": "By the reward models the policy was trained on", "audit": "By the audit judge it never saw"},
        images=images,
        colors=[objective_color(k) for k in range(len(summary["objectives"]))],
        has_steps=bool(metrics),
        examples=_examples(evaluations),
        history=evaluations if len(evaluations) > 2 else [],
        history_metrics=[describe(key, table=EVALUATION_METRICS) for key in HISTORY],
        settings=_settings(summary, run),
        versions=run.get("versions") or {},
        config_text=config_text,
    )


def _sentence(summary: Record, metrics: list[Record], run: Record, config_text: str) -> str:
    """What this run is, for somebody who sees only this page."""
    objectives = list(summary["objectives"])
    names = objectives[0] if len(objectives) == 1 else f"{', '.join(objectives[:-1])} and {objectives[-1]}"
    try:
        model = str(parse_yaml(config_text, "config.yaml")["policy"]["model"])
    except (BadInput, KeyError, TypeError):
        model = "the starting policy"
    if not metrics:
        return f"A policy that follows a preference vector over {names}, measured on the preference grid."
    prompts = sum(record.get("prompts") or 0 for record in metrics)
    tokens = sum(record.get("generated_tokens") or 0 for record in metrics)
    duration = f" in {_duration(summary['seconds'])}" if summary["seconds"] else ""
    return (
        f"{run.get('method') or 'The method'} trained {model} for {len(metrics)} updates on {prompts:,} sampled prompts"
        f" ({tokens:,} generated tokens){duration} to follow a preference vector over {names}."
    )


def _examples(evaluations: list[Record]) -> list[Record]:
    """Of each prompt whose answers were kept: for each vector the answer before and after with its scores."""
    earlier = evaluations[0].get("examples") or [] if len(evaluations) > 1 else []
    before = {(item["prompt"], *item["preference"]): item for item in earlier}
    answers: dict[str, list[Record]] = {}
    for item in evaluations[-1].get("examples") or []:
        start = before.get((item["prompt"], *item["preference"]))
        answers.setdefault(item["prompt"], []).append(
            {"preference": item["preference"], "after": item, "before": start}
        )
    return [{"prompt": prompt, "answers": found} for prompt, found in answers.items()]


def _settings(summary: Record, run: Record) -> list[tuple[str, str]]:
    point = summary["reference_point"] or []
    training = run.get("training") or {}
    entries = [
        ("Method", summary["method"]),
        ("Seed", summary["seed"]),
        ("Hypervolume reference", "(" + ", ".join(f"{value:g}" for value in point) + "), normalised scores"),
        ("Wall time", _duration(summary["seconds"]) if summary["seconds"] else None),
        ("of which training", _duration(training["seconds"]) if training.get("seconds") else None),
        ("Started", run.get("start")),
        ("Status", summary["status"]),
        ("Command", " ".join(map(str, run.get("command") or [])) or None),
        ("Source revision", run.get("git_sha")),
        ("Python", run.get("python")),
        ("CPUs", run.get("cpus")),
        ("Responses with a missing score", summary["after"].get("missing")),
    ]
    return [(name, str(value)) for name, value in entries if value is not None]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _read_json(path: Path) -> Record:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BadInput(f"{path}: is no JSON object: {error}") from None
