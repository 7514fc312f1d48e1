"""wandb may fail at any time; the run goes on and says so once."""

from orchestrator.run.monitoring import WandbLog


class FakeRun:
    """Takes figures until it breaks."""

    def __init__(self, *, breaks_at=None):
        self.breaks_at = breaks_at
        self.logged = []
        self.exit_code = None

    def log(self, values, step=None):
        if step == self.breaks_at:
            raise ConnectionResetError("Connection\nlost")
        self.logged.append((step, values))

    def finish(self, exit_code):
        if self.breaks_at == "end":
            raise BrokenPipeError
        self.exit_code = exit_code


def fail_to_start():
    raise OSError("no room for RUN/wandb")


def test_figures_and_the_end_are_passed_on():
    run = FakeRun()
    said: list[str] = []
    log = WandbLog(lambda: run, said.append)
    log.log({"loss": 1.0}, step=1)
    log.finish(exit_code=0)
    assert run.logged == [(1, {"loss": 1.0})] and run.exit_code == 0 and not said


def test_the_first_failure_is_told_and_nothing_is_asked_of_it_again():
    run = FakeRun(breaks_at=2)
    said: list[str] = []
    log = WandbLog(lambda: run, said.append)
    for step in range(1, 5):
        log.log({"loss": 1.0}, step=step)
    log.finish(exit_code=0)
    assert [step for step, _ in run.logged] == [1] and run.exit_code is None
    assert said == [
        "warning: wandb failed (ConnectionResetError: Connection lost); nothing more goes there, "
        "RUN/metrics.jsonl has everything"
    ]


def test_a_start_or_an_end_that_fails_is_told_as_well():
    for start in (fail_to_start, lambda: FakeRun(breaks_at="end")):
        said: list[str] = []
        log = WandbLog(start, said.append)
        log.log({"loss": 1.0}, step=1)
        log.finish(exit_code=0)
        assert len(said) == 1 and said[0].startswith("warning: wandb failed (")


def test_a_run_that_wants_none_gets_none():
    said: list[str] = []
    log = WandbLog(lambda: None, said.append)
    log.log({"loss": 1.0}, step=1)
    log.finish(exit_code=0)
    assert not said
