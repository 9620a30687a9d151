"""The one exception users are meant to see: what is wrong, where, and what to do."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the input; the command line prints it as one line, without a traceback."""


class DataError(UserError):
    """A file, a data set or a chat template of which no sample can be made, whatever the rows hold."""
