"""What can go wrong, as two kinds: the user's input (exit 2) or the run itself (exit 1)."""

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2


class BadInput(ValueError):
    """Input that cannot be used; the message names the place, the rule and the value received."""


class RunFailed(RuntimeError):
    """A run that started and could not go on; the message names the component and what to look at."""


class ComponentLost(RunFailed):
    """A part of the run died or missed its deadline; everything started again goes on from the last checkpoint."""
