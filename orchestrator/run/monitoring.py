"""Where a run's figures are watched: Ray's metrics (actors tell their own part, `actors.metrics`), wandb if wanted.

wandb may fail at any time, and ends no run by it.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.metrics import Metrics
from learner.methods import METHODS
from rewards.metrics import EVALUATION_METRICS, STEP_METRICS

if TYPE_CHECKING:
    from orchestrator.config import Recipe

RENAMED = {"mi_epo_seconds": "mi_epo_stage_seconds"}
OWN = tuple(metric for method in METHODS.values() for metric in method.metrics)
TOLD = {
    **{f"mi_epo_{metric.family}": metric for metric in (*STEP_METRICS, *OWN) if metric.key != "generated_tokens"},
    **{f"mi_epo_evaluation_{metric.family}": metric for metric in EVALUATION_METRICS},
}
TOLD = {RENAMED.get(name, name): metric for name, metric in TOLD.items()}
"""Ray's name -> what is told under it; a family's figures by its tag. Engines count the generated tokens."""
COUNTERS = ("mi_epo_prompts", "mi_epo_prompts_dropped", "mi_epo_learner_tokens")
FINISH_TIMEOUT_S = 120.0
"""Longest wait for what wandb still has to send; the files in RUN/wandb keep it, for `wandb sync`."""


class Monitor:
    """The driver's metrics of one run; what `TOLD` does not know is left out.

    Args:
        run: name of the run directory.
    """

    def __init__(self, run: str) -> None:
        self._metrics = Metrics(run=run)
        for name, metric in TOLD.items():
            announce = self._metrics.counter if name in COUNTERS else self._metrics.gauge
            announce(name, metric.definition, *filter(None, [metric.tag]))

    def step(self, figures: Mapping[str, float]) -> None:
        """By the keys of `STEP_METRICS`."""
        self._tell("mi_epo_", figures)

    def evaluation(self, figures: Mapping[str, float]) -> None:
        """By the keys of `EVALUATION_METRICS`."""
        self._tell("mi_epo_evaluation_", figures)

    def close(self) -> None:
        self._metrics.close()

    def _tell(self, prefix: str, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            family, _, member = key.partition("/")
            name = RENAMED.get(prefix + family, prefix + family)
            if name in COUNTERS:
                self._metrics.add(name, value)
            elif name in TOLD:
                self._metrics.set(name, value, **({TOLD[name].tag: member} if member else {}))


def start_wandb(recipe: "Recipe", run_dir: Path) -> Any:
    """A wandb run, or None when the recipe wants none."""
    mode = recipe.telemetry.wandb
    if mode == "auto":
        mode = "online" if _has_key() else "offline"
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    return wandb.init(
        project=recipe.telemetry.project,
        name=run_dir.name,
        dir=str(run_dir),
        mode=mode,
        config=recipe.model_dump(mode="json"),
        settings=wandb.Settings(console="off", x_disable_stats=True, finish_timeout=FINISH_TIMEOUT_S),
    )


class WandbLog:
    """Passes figures on until wandb fails for the first time, which is told once.

    Its service is a process of its own: `ray job stop` ends that one together with the driver's own work.

    Args:
        start: returns an object with wandb's `log` and `finish`, or None.
        say: takes the line that tells of the failure.
    """

    def __init__(self, start: Callable[[], Any], say: Callable[[str], None]) -> None:
        self._say = say
        self._run: Any = None
        self._run = self._try(start)

    @property
    def is_on(self) -> bool:
        return self._run is not None

    def log(self, values: Mapping[str, Any], **options: Any) -> None:
        if self._run is not None:
            self._try(lambda: self._run.log(dict(values), **options))

    def log_tables(self, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Name -> rows with the same keys; those without a row are left out."""
        if self._run is not None:
            self._try(lambda: self._run.log({name: _as_table(rows) for name, rows in tables.items() if rows}))

    def log_images(self, images: Mapping[str, Path]) -> None:
        """Name -> PNG."""
        if self._run is not None:
            self._try(lambda: self._run.log({name: _as_image(path) for name, path in images.items()}))

    def finish(self, exit_code: int) -> None:
        if self._run is not None:
            self._try(lambda: self._run.finish(exit_code=exit_code))

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # the library raises many kinds; none of them is worth a run
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self._say(f"warning: wandb failed ({what}); nothing more goes there, RUN/metrics.jsonl has everything")
            self._run = None
            _tear_down()
            return None


def _as_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])


def _as_image(path: Path) -> Any:
    import wandb

    return wandb.Image(str(path))


def _tear_down() -> None:
    """Without it wandb says good-bye to its service once more when the process ends, and prints how that fails."""
    with contextlib.suppress(Exception):
        import wandb

        wandb.teardown(exit_code=1)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    with contextlib.suppress(OSError):
        return "wandb" in netrc.read_text(encoding="utf-8")
    return False
