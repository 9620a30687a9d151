"""The one exception users are meant to see: what is wrong, where, and what to do."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the input; the command line prints it as one line, without a traceback."""


class DataError(UserError):
    """A file, a data set or a chat template of which no sample can be made, whatever the rows hold."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
