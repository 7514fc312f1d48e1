"""What errors say and mean, whoever raised them."""

MAX_MESSAGE_CHARS = 400


def one_line(error: BaseException) -> str:
    """The message of an error on one line, short enough for a terminal; the class name when it has none."""
    return _shortened(" ".join(str(error).split())) or type(error).__name__


def describe(error: BaseException) -> str:
    """Class name and first line of an error of somebody else's code, whose further lines may be a long story."""
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {_shortened(lines[0])}" if lines else kind


def is_device_failure(error: BaseException | None) -> bool:
    """Whether torch lost its device on the way to this error: every later call of the process fails then as well."""
    # by name: the driver and light judges load no torch
    while error is not None and type(error).__name__ != "AcceleratorError":
        error = error.__cause__
    return error is not None


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 3] + "..."
