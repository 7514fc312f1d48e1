"""`mi-epo compare`: choose each method's setting, run every (method, seed) that is missing, gather, tell."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from orchestrator.bench.cells import (
    RESULTS,
    Cell,
    CellRunner,
    Results,
    Sweep,
    Work,
    add_igd_plus,
    best_value,
    gather,
    is_finished,
    make_cells,
    method_of,
    write_results,
)
from orchestrator.bench.tables import LEAST_SEEDS, QUALITY, quality_table
from orchestrator.cluster.connection import runs_that_fit
from orchestrator.config import Recipe
from orchestrator.errors import BadInput
from orchestrator.files import as_text
from orchestrator.recipes import load_recipe, override

Say = Callable[[str], None]
OVERRIDES = ("telemetry.wandb=disabled", "cluster.dashboard=false")
"""What cells do without: they are many, and the results file tells about all of them."""
QUICK = ("loop.steps=20", "evaluate.prompts=16", "evaluate.samples=2", "evaluate.every=10")
CURVE_POINTS = 5
"""Evaluations of a cell, the first and the last included, unless the recipe asks for its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be compared.

    Example: Question(methods=("mi-epo", "mo-odpo"), seeds=(0, 1, 2), grids={"beta_c": (0.1, 0.3)}, jobs=2)
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    grids: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Name of a setting -> values among which each method tuned by it gets its own best; else the recipe's."""
    tune_seed: int | None = None
    """Seed of the runs that choose; None: the first after the compared ones."""
    sweep: tuple[str, tuple[float, ...]] | None = None
    """(dotted key, values): the first method again with each of them."""
    jobs: int | None = None
    """Runs at a time; None: as many as a Ray cluster to be joined has room for, 1 where each run starts its own."""
    quick: bool = False

    def check(self) -> None:
        """Raises BadInput, naming the option."""
        options: dict[str, tuple[Any, ...]] = {"--methods": self.methods, "--seeds": self.seeds}
        options |= {f"--{name.replace('_', '-')}": values for name, values in self.grids.items()}
        if self.sweep:
            options["--sweep"] = self.sweep[1]
        for option, values in options.items():
            repeated = [value for index, value in enumerate(values) if value in values[:index]]
            if repeated:
                raise BadInput(f"{option}: values must differ, got {repeated[0]!r} twice")
            if not values:
                raise BadInput(f"{option}: needs at least one value")
        for method in self.methods:
            method_of(method)
        if self.tuning_seed in self.seeds:
            raise BadInput(f"--tune-seed: must not be among the compared seeds, got {self.tuning_seed}")
        if self.jobs is not None and self.jobs < 1:
            raise BadInput(f"--jobs: must be >= 1, got {self.jobs}")

    @property
    def tuning_seed(self) -> int:
        return max(self.seeds) + 1 if self.tune_seed is None else self.tune_seed

    def values(self, method: str, recipe: Recipe) -> tuple[float, ...]:
        """Candidates for the method's setting."""
        section, _, knob = method_of(method).tuned_by.partition(".")
        name, *changes = method.split("@")
        own = override(recipe, [f"method={name}", *changes])
        return self.grids.get(knob) or (getattr(getattr(own, section), knob),)


def compare(question: Question, recipe_path: str, overrides: Sequence[str], folder: Path | None, *, say: Say) -> Path:
    """Returns the path of the results file. Finished cells are never run again, others go on from a checkpoint.

    Raises:
        BadInput: the question or the recipe is wrong, or the folder holds cells of another recipe.
        RunFailed: a cell failed; those that finished are kept.
    """
    question.check()
    recipe = load_recipe(recipe_path, list(overrides))
    work = _work(question, recipe, recipe_path, overrides, folder)
    values = {method: question.values(method, recipe) for method in question.methods}
    candidates = [
        Cell(method=method, seed=question.tuning_seed, value=value, part="tuning")
        for method, several in values.items()
        if len(several) > 1
        for value in several
    ]
    first = {method: several[0] for method, several in values.items()}
    _check_recipes(work, [*candidates, *make_cells(first, question.seeds), *sweep_cells(question, work, first)])
    if len(question.seeds) < LEAST_SEEDS:
        say(f"fewer than {LEAST_SEEDS} seeds: the tables will hold no intervals")
    jobs = question.jobs or runs_that_fit(recipe)
    _run_missing(work, candidates, jobs, say)
    tuning = [gather(work, cell) for cell in candidates]
    tuned = {cell.method for cell in candidates}
    chosen = {method: best_value(tuning, method) if method in tuned else first[method] for method in values}
    cells = make_cells(chosen, question.seeds)
    swept = sweep_cells(question, work, chosen)
    _run_missing(work, [*cells, *swept], jobs, say)
    results = Results(
        recipe=recipe.name,
        objectives=recipe.objective_names,
        steps=work.recipe(cells[0]).loop.steps,
        seeds=question.seeds,
        methods=question.methods,
        tune_seed=question.tuning_seed if tuning else None,
        tuning=tuple(tuning),
        sweep=_sweep(question, swept),
        cells=[gather(work, cell) for cell in [*cells, *swept]],
    )
    add_igd_plus(results)
    write_results(work.folder / RESULTS, results)
    say("\n" + as_text(quality_table(results, QUALITY)))
    from orchestrator.bench.document import write_document  # matplotlib

    document = write_document([results], work.folder / "results.md")
    say(f"\nresults  {work.folder / RESULTS}\ntables   {document}")
    return work.folder / RESULTS


def _work(question: Question, recipe: Recipe, recipe_path: str, overrides: Sequence[str], folder: Path | None) -> Work:
    own = [*OVERRIDES, *(QUICK if question.quick else ())]
    if not recipe.evaluate.every and not question.quick:
        own.append(f"evaluate.every={max(1, recipe.loop.steps // (CURVE_POINTS - 1))}")
    name = f"{recipe.name}-quick" if question.quick else recipe.name
    # The user's overrides come last, so that they win.
    return Work(recipe_path=recipe_path, overrides=(*own, *overrides), folder=folder or Path("comparisons") / name)


def sweep_cells(question: Question, work: Work, chosen: Mapping[str, float]) -> list[Cell]:
    """The sweep's runs but those at the first method's own value, which are among its cells."""
    if question.sweep is None:
        return []
    method, (key, values) = question.methods[0], question.sweep
    own = work.recipe(Cell(method=method, seed=question.seeds[0], value=chosen[method], part="sweep"))
    cells = [
        Cell(method=f"{method}@{key}={value:g}", seed=seed, value=chosen[method], part="sweep")
        for seed in question.seeds
        for value in values
    ]
    same = {cell.method for cell in cells if cell.seed == question.seeds[0] and work.recipe(cell) == own}
    return [cell for cell in cells if cell.method not in same]


def _sweep(question: Question, cells: Sequence[Cell]) -> Sweep | None:
    if question.sweep is None:
        return None
    method, (key, values) = question.methods[0], question.sweep
    run = {cell.method for cell in cells}
    names = [f"{method}@{key}={value:g}" for value in values]
    return Sweep(key=key, values=values, methods=tuple(name if name in run else method for name in names))


def _check_recipes(work: Work, cells: Sequence[Cell]) -> None:
    """Every cell's recipe loads and no finished cell belongs to another, before the first one runs."""
    for cell in cells:
        work.recipe(cell)
        is_finished(work, cell)


def _run_missing(work: Work, cells: Sequence[Cell], jobs: int, say: Say) -> None:
    missing = [cell for cell in cells if not is_finished(work, cell)]
    if len(missing) < len(cells):
        say(f"{len(cells) - len(missing)} of {len(cells)} runs are finished already")
    if not missing:
        return
    runner, started, finished = CellRunner(work), time.monotonic(), []

    def run(index: int, cell: Cell) -> None:
        say(f"run {index}/{len(missing)}  {cell.name} ...")
        if not runner(cell):
            return
        finished.append(cell)
        left = (time.monotonic() - started) / len(finished) * (len(missing) - len(finished))
        say(f"run {index}/{len(missing)}  {cell.name} finished; about {left / 60:.0f} min left")

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        futures = [pool.submit(run, index, cell) for index, cell in enumerate(missing, start=1)]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    finally:
        signal.signal(signal.SIGTERM, previous)
        pool.shutdown(wait=False, cancel_futures=True)
        runner.stop()
        pool.shutdown(wait=True)
