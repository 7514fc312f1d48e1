"""What options of the command line may be. What one cannot be is said in one line, before anything starts."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from orchestrator.errors import EXIT_BAD_INPUT
from rewards.environment import MAX_SEED, expanded_folder, expanded_path, is_unicode


class Parser(argparse.ArgumentParser):
    """Refuses in one line, as everything else does."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"mi-epo: {message} (see {self.prog} --help)\n")


def text(given: str) -> str:
    _given(given)
    if not is_unicode(given):
        raise argparse.ArgumentTypeError(f"must be text in UTF-8, got {given!r:.100}")
    return given


def readable(given: str) -> str:
    """A path; `~` is the home folder also where no shell replaces it, as in `--run-dir=~/run`."""
    return _checked(expanded_path, given)


def path(given: str) -> Path:
    return Path(readable(given))


def folder(given: str) -> Path:
    """To be written."""
    return Path(_checked(expanded_folder, given))


def file(given: str) -> Path:
    """To be written."""
    if (found := path(given)).is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, got the folder {given!r}")
    return folder(str(found.parent)) / found.name


def count(given: str) -> int:
    return _whole(given, 1, math.inf)


def seed(given: str) -> int:
    return _whole(given, 0, MAX_SEED)


def _given(text: str) -> str:
    """Empty is what an unset variable of a shell gives: a mistake, and not the default."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _checked(check: Callable[[str], str], given: str) -> str:
    """What argparse would say of a ValueError names the function instead of the rule."""
    try:
        return check(_given(given))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _whole(given: str, least: int, most: float) -> int:
    bounds = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
    try:
        number = int(given)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, got {given!r:.100}")
    return number
