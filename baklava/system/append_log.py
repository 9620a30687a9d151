"""An append-only log of finished work that survives a killed process: checksummed lines, looked up by key."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from baklava.errors import UserError
from baklava.system.lock import wait_for_lock

HEADER = b"baklava store 1\n"


class AppendLog:
    """A file of lines `CHECKSUM JSON`, each a key and a value; if a key occurs twice, its last line counts.

    Only offsets into the file are held in memory. A line that was cut short or damaged is ignored and named on standard
    error, so that its work is done again. With `alone`, wait until no other process uses the file, such as a job that
    outlived a killed workflow. Raises `UserError` for a file that is not a log, or one of another version.

    `others` are more logs to look keys up in. They are only read, as far as they are complete now, because other
    processes may be writing to them.
    """

    def __init__(self, path: Path, others: Iterable[Path] = (), *, alone: bool = False):
        self.path = path
        self._entries: dict[str, tuple[BinaryIO, int]] = {}  # file and offset of each key's line
        for other in others:
            self._index(other.open("rb"))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        if alone:
            wait_for_lock(self._file, f"{path}: waiting while another process is at work on it")
        self._file.seek(0)
        if _is_incomplete_header(self._file.readline()):  # the file is new, or was cut short before its first entry
            self._file.truncate(0)
            self._append(HEADER)
        elif self._index(self._file):
            self._append(b"\n")  # so that the next entry does not continue the cut line

    def _index(self, file: BinaryIO) -> bool:
        """Note the offset of every entry. Returns whether the last line is cut short."""
        file.seek(0)
        header = file.readline()
        if _is_incomplete_header(header):
            return False
        if header != HEADER:
            begin = header[:40].decode(errors="replace").strip()
            raise UserError(f"{file.name}: not a store of this version (it begins with {begin!r}); move it away")
        number, offset, line = 1, len(header), header
        for line in file:
            number += 1
            entry = _parse(line)
            if entry is not None:
                self._entries[entry[0]] = (file, offset)
            elif file.writable() or line.endswith(b"\n"):
                print(f"{file.name}: line {number} is damaged; its work is done again", file=sys.stderr)
            offset += len(line)
        return not line.endswith(b"\n")

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, key: str) -> Any:
        file, offset = self._entries[key]
        file.seek(offset)
        entry = _parse(file.readline())
        if entry is None or entry[0] != key:
            raise UserError(f"{file.name}: changed while it was in use; run again")
        return entry[1]

    def add(self, entries: Mapping[str, Any]) -> None:
        """Append entries in a single write, and wait until they are on disk."""
        lines = [_format(key, value) for key, value in entries.items()]
        offset = self._append(b"".join(lines))
        for key, line in zip(entries, lines, strict=True):
            self._entries[key] = (self._file, offset)
            offset += len(line)

    def _append(self, data: bytes) -> int:
        """Append all of `data` or nothing. Returns the offset at which it begins."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = os.write(self._file.fileno(), data)
            if written < len(data):  # the disk is full; a second write raises the error that says so
                os.write(self._file.fileno(), data[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            message = f"{os.strerror(error.errno or 0)}; finished answers are kept, run again to go on"
            raise OSError(error.errno, message, str(self.path)) from None
        return self._file.seek(0, os.SEEK_END) - len(data)

    def close(self) -> None:
        for file in {file for file, _ in self._entries.values()} | {self._file}:
            file.close()


def _is_incomplete_header(line: bytes) -> bool:
    return HEADER.startswith(line) and line != HEADER


def _format(key: str, value: Any) -> bytes:
    text = json.dumps([key, value], ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")
    return f"{zlib.crc32(text):08x} ".encode() + text + b"\n"


def _parse(line: bytes) -> tuple[str, Any] | None:
    """Key and value of a line, None if it is damaged."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    key, value = json.loads(text.decode("utf-8", "surrogatepass"))
    return key, value
