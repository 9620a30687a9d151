"""The log of a job: whole lines, whatever progress bars draw, and what belongs on the terminal as well."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from baklava.errors import is_refusal

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
LAST_LINES = 20  # of a log, where a job failed
# Seconds between two lines of a progress bar: a tenth of the time so far, so that a log of hours has tens of lines.
LEAST, MOST, FRACTION = 10.0, 600.0, 0.1

_terminal: TextIO | None = None  # where a log takes all output, what was standard error before


def tell(line: str) -> None:
    """Write a line to standard error and, where a log takes that, to the terminal too."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
    if _terminal is not None:
        print(line, file=_terminal, flush=True)


class WholeLines(io.TextIOBase):
    """A stream that writes whole lines to another, without escape codes: of a line that is drawn anew, few versions."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._pending = ""
        self._started = self._last = time.monotonic()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._pending.startswith("\r") and text[:1] not in ("\r", "\n", ""):
            self._pending += "\n"  # a progress bar, and something else
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            self._write_line(line)
        if "\r" in self._pending:
            self._pending = self._pending[self._pending.rindex("\r") :]
            now = time.monotonic()
            if now - self._last >= min(MOST, max(LEAST, FRACTION * (now - self._started))):
                self._write_line(self._pending)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def _write_line(self, line: str) -> None:
        drawn = [text.rstrip() for text in _ESCAPES.sub("", line).split("\r") if text.strip()]
        if drawn or not line:
            self._stream.write("".join(drawn[-1:]) + "\n")
            self._stream.flush()
            self._last = time.monotonic()


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Write all output of this process to a file, that of libraries and of child processes too."""
    global _terminal
    log.parent.mkdir(parents=True, exist_ok=True)
    streams, terminal, handles = (sys.stdout, sys.stderr), _terminal, (os.dup(1), os.dup(2))
    with log.open("w", encoding="utf-8", buffering=1) as file:
        try:
            for stream in streams:
                stream.flush()
            _terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = file, WholeLines(file)
            yield
        finally:
            if _terminal is not None:
                _terminal.close()
            (sys.stdout, sys.stderr), _terminal = streams, terminal
            for number, handle in enumerate(handles, start=1):
                os.dup2(handle, number)
                os.close(handle)


def last_lines(log: Path) -> str:
    """What a failed job said in the end: the one line for the user, or several of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-1:] if is_refusal(log) else [f"{log} ends with:", *lines[-LAST_LINES:]])
