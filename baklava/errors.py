"""The one exception users are meant to see: what is wrong, where, and what to do."""

from __future__ import annotations

import re
from pathlib import Path


class UserError(ValueError):
    """A mistake in the input; the command line prints it as one line, without a traceback."""


class DataError(UserError):
    """A file, a data set or a chat template of which no sample can be made, whatever the rows hold."""


class LengthError(UserError):
    """A length at which a task has no sample. Whoever asked for one knows which setting that is, and says so."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_refusal(log: Path | str) -> bool:
    """Whether the command that wrote this log ended with one line for the user, which running it again would repeat.

    What the system refused, such as room on a disk, may be there the next time.
    """
    try:
        lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return bool(lines) and re.match(r"baklava \S+: error: (?!\[Errno)", lines[-1]) is not None
