"""`mi-epo compare`: tune each method's beta_c, run every (method, seed) that is missing, gather, tell."""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from learner.methods import METHODS
from orchestrator.compare.cells import Cell, CellRunner, Work, base_method, is_finished, make_cells
from orchestrator.compare.results import (
    RESULTS,
    Results,
    add_igd_plus,
    best_beta_c,
    gather,
    write_results,
)
from orchestrator.compare.tables import QUALITY, quality_table
from orchestrator.config import Recipe, load_recipe
from orchestrator.errors import BadInput
from orchestrator.summary import as_text

Say = Callable[[str], None]
OVERRIDES = ("telemetry.wandb=disabled", "cluster.dashboard=false")
"""What cells do without: they are many, and the results file tells about all of them."""
QUICK = ("loop.steps=20", "evaluate.prompts=16", "evaluate.samples=2", "evaluate.every=10")
CURVE_POINTS = 5
"""Evaluations of a cell, the first and the last included, unless the recipe asks for its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be compared.

    Example: Question(methods=("mi-epo", "mo-odpo"), seeds=(0, 1, 2), beta_c_grid=(0.1, 0.3), tune_seed=3, jobs=2)
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    beta_c_grid: tuple[float, ...] = ()
    """Values among which each method's own best is chosen; empty: the recipe's for all. `ric` has no beta_c."""
    tune_seed: int | None = None
    """Seed of the runs that choose; None: the first after the compared ones."""
    jobs: int = 1
    """Runs at a time."""
    quick: bool = False

    def check(self) -> None:
        """Raises BadInput, naming the option."""
        for option, values in (("--methods", self.methods), ("--seeds", self.seeds), ("--beta-c", self.beta_c_grid)):
            repeated = [value for index, value in enumerate(values) if value in values[:index]]
            if repeated:
                raise BadInput(f"{option}: values must differ, got {repeated[0]!r} twice")
        for method in self.methods:
            if base_method(method) not in METHODS:
                raise BadInput(f"--methods: must be among {', '.join(METHODS)}, got {base_method(method)!r}")
        if not self.methods or not self.seeds:
            raise BadInput("--methods and --seeds: need at least one value each")
        if self.tuning_seed in self.seeds:
            raise BadInput(f"--tune-seed: must not be among the compared seeds, got {self.tuning_seed}")
        if self.jobs < 1:
            raise BadInput(f"--jobs: must be >= 1, got {self.jobs}")

    @property
    def tunes(self) -> bool:
        return len(self.beta_c_grid) > 1

    @property
    def tuning_seed(self) -> int:
        return max(self.seeds) + 1 if self.tune_seed is None else self.tune_seed


def compare(question: Question, recipe_path: str, overrides: Sequence[str], folder: Path | None, *, say: Say) -> Path:
    """Returns the path of the results file. Finished cells are never run again; unfinished ones start over.

    Raises:
        BadInput: the question or the recipe is wrong, or the folder holds cells of another recipe.
        RunFailed: a cell failed; those that finished are kept.
    """
    question.check()
    recipe = load_recipe(recipe_path, list(overrides))
    work = _work(question, recipe, recipe_path, overrides, folder)
    grid = question.beta_c_grid or (recipe.learner.beta_c,)
    tuned = [method for method in question.methods if question.tunes and not METHODS[base_method(method)].supervised]
    candidates = [
        Cell(method=method, seed=question.tuning_seed, beta_c=b, tuning=True) for method in tuned for b in grid
    ]
    _check_recipes(
        work, [*candidates, *make_cells(question.methods, question.seeds, dict.fromkeys(question.methods, grid[0]))]
    )
    if len(question.seeds) < 2:
        say("one seed: the tables will hold no intervals")
    _run_missing(work, candidates, question.jobs, say)
    tuning = [gather(work, cell) for cell in candidates]
    beta_c = {method: best_beta_c(tuning, method) if method in tuned else grid[0] for method in question.methods}
    cells = make_cells(question.methods, question.seeds, beta_c)
    _run_missing(work, cells, question.jobs, say)
    results = Results(
        recipe=recipe.name,
        objectives=recipe.objective_names,
        steps=work.recipe(cells[0]).loop.steps,
        seeds=question.seeds,
        methods=question.methods,
        tune_seed=question.tuning_seed if question.tunes else None,
        beta_c_grid=tuple(grid),
        beta_c=beta_c,
        tuning=tuple(tuning),
        cells=[gather(work, cell) for cell in cells],
    )
    add_igd_plus(results.cells)
    write_results(work.folder / RESULTS, results)
    say("\n" + as_text(quality_table(results, QUALITY)))
    from orchestrator.compare.document import write_document  # matplotlib

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
    runner = CellRunner(work)

    def run(index: int, cell: Cell) -> None:
        say(f"run {index}/{len(missing)}  {cell.name} ...")
        runner(cell)
        say(f"run {index}/{len(missing)}  {cell.name} finished")

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
