"""A comparison as a page of markdown with its figures, made from the results file alone."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.bench import tables
from orchestrator.bench.reading import reading
from orchestrator.bench.results import Results
from orchestrator.bench.tables import Table, as_markdown


def write_document(comparisons: Sequence[Results], path: Path) -> Path:
    """Write `path` (markdown), a section for each comparison, and beside it the figures it shows. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stems: list[str] = []
    for results in comparisons:
        stem = f"{path.stem}-{results.recipe}"
        stems.append(stem if stem not in stems else f"{stem}-{len(stems) + 1}")
    parts = [part for results, stem in zip(comparisons, stems, strict=True) for part in _parts(results, path, stem)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _parts(results: Results, path: Path, stem: str) -> list[str]:
    from orchestrator.bench.figures.comparison import plot_control, plot_curves, plot_distributions, plot_fronts

    figures = {
        "fronts": ("Mean reward under each preference vector", plot_fronts),
        "control": ("Reward of each objective against its weight", plot_control),
        "distributions": ("Rewards under five vectors; shaded where neighbours overlap", plot_distributions),
        "curves": ("Metrics against generated tokens", plot_curves),
    }
    shown = []
    for name, (caption, plot) in figures.items():
        figure = path.with_name(f"{stem}-{name}.png")
        plot(figure, results)
        shown.append(f"![{caption}]({figure.name})")
    return [
        f"# {results.recipe}: {len(results.methods)} methods, {_seeds(results)}",
        _work_paragraph(results),
        *(["\n".join(f"- {sentence}" for sentence in sentences)] if (sentences := reading(results)) else []),
        *shown,
        *_section("After training, by the reward models", tables.quality_table(results, tables.QUALITY)),
        *_section("Difference to `mi-epo`, paired by seed", tables.difference_table(results, tables.QUALITY)),
        *_section("How far w is followed", tables.quality_table(results, tables.CONTROL)),
        *_section("By the audit judge, and the price", tables.quality_table(results, tables.TRUTH)),
        *_section(
            "At equal KL to the start, along each training curve", tables.matched_kl_table(results, tables.QUALITY[:3])
        ),
        *_section("Cost of a run", tables.cost_table(results)),
        *_sweep_section(results),
        *_section("How each method's setting was chosen", tables.tuning_table(results)),
    ]


def _section(title: str, table: Table) -> list[str]:
    return [f"## {title}", as_markdown(table)] if len(table) > 1 else []


def _sweep_section(results: Results) -> list[str]:
    sweep = results.sweep
    if sweep is None:
        return []
    method, own = results.methods[0], results.of(results.methods[0])[0]
    return _section(
        f"`{method}` with other values of {sweep.key} ({own.knob} {own.value:g})",
        tables.sweep_table(results, tables.SWEPT),
    )


def _seeds(results: Results) -> str:
    count = len(results.seeds)
    return f"{count} seeds" if count > 1 else "one seed (no intervals)"


def _work_paragraph(results: Results) -> str:
    tuned = (
        "Each method stands at its own best value of the setting that decides how far it drifts, chosen under seed "
        f"{results.tune_seed}, which is in no other table, by the MIP of the audit judge (of the reward models where "
        "there is none)."
        if results.tuning
        else "Every setting is the recipe's."
    )
    return (
        f"Objectives {', '.join(results.objectives)}; {results.steps} updates; seeds "
        f"{', '.join(map(str, results.seeds))}. Under one seed every method has the same starting policy, reward "
        f"models, prompts and number of sampled responses. {tuned} ± is the half width of the 95 % interval of the "
        "mean over seeds (Student's t). ↑ higher is better, ↓ lower is better."
    )
