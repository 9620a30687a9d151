"""A store of finished work that survives being killed: checksummed lines, appended, looked up by key."""

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
    """One file of lines `CHECKSUM JSON`, each a key and a value; of equal keys the last counts.

    Only places in the file are held in memory. A line that was cut short or damaged is left out, named on standard
    error, and its work is done again. With `alone`, wait until no other process is at work on the file: a job that
    outlived a killed workflow, for one. Raises `UserError` for a file that is no store or one of another version.

    `others` are stores to look into besides. Other processes may be writing to them, so they are only read, as far as
    they are finished now.
    """

    def __init__(self, path: Path, others: Iterable[Path] = (), *, alone: bool = False):
        self.path = path
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        for other in others:
            self._read(other.open("rb"))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        if alone:
            wait_for_lock(self._file, f"{path}: waiting while another process is at work on it")
        self._file.seek(0)
        if _is_part(self._file.readline(), HEADER):  # new, or cut short before there was anything in it
            self._file.truncate(0)
            self._append(HEADER)
        elif self._read(self._file):
            self._append(b"\n")  # begin the next line on a line of its own

    def _read(self, file: BinaryIO) -> bool:
        """Note where everything is; says whether the last line is cut short."""
        file.seek(0)
        header = file.readline()
        if _is_part(header, HEADER):
            return False
        if header != HEADER:
            found = header[:40].decode(errors="replace").strip()
            raise UserError(f"{file.name}: not a store of this version (it begins with {found!r}); move it away")
        number, place, line = 1, len(header), header
        for line in file:
            number += 1
            entry = _parsed(line)
            if entry is not None:
                self._places[entry[0]] = (file, place)
            elif file.writable() or line.endswith(b"\n"):
                print(f"{file.name}: line {number} is damaged; its work is done again", file=sys.stderr)
            place += len(line)
        return not line.endswith(b"\n")

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> Any:
        file, place = self._places[key]
        file.seek(place)
        entry = _parsed(file.readline())
        if entry is None or entry[0] != key:
            raise UserError(f"{file.name}: changed while it was in use; run again")
        return entry[1]

    def add(self, entries: Mapping[str, Any]) -> None:
        """Append entries in one write, and wait until they are on disk."""
        lines = [_line(key, value) for key, value in entries.items()]
        place = self._append(b"".join(lines))
        for key, line in zip(entries, lines, strict=True):
            self._places[key] = (self._file, place)
            place += len(line)

    def _append(self, data: bytes) -> int:
        """Write at the end of the file, all of it or nothing; returns where."""
        place = self._file.seek(0, os.SEEK_END)
        try:
            written = os.write(self._file.fileno(), data)
            if written < len(data):  # the disk filled up; once more for the error that says so
                os.write(self._file.fileno(), data[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), place)
            message = f"{os.strerror(error.errno or 0)}; finished answers are kept, run again to go on"
            raise OSError(error.errno, message, str(self.path)) from None
        return self._file.seek(0, os.SEEK_END) - len(data)

    def close(self) -> None:
        for file in {file for file, _ in self._places.values()} | {self._file}:
            file.close()


def _is_part(begun: bytes, whole: bytes) -> bool:
    return whole.startswith(begun) and begun != whole


def _line(key: str, value: Any) -> bytes:
    text = json.dumps([key, value], ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")
    return f"{zlib.crc32(text):08x} ".encode() + text + b"\n"


def _parsed(line: bytes) -> tuple[str, Any] | None:
    """Key and value of a line, None for a damaged one."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    key, value = json.loads(text.decode("utf-8", "surrogatepass"))
    return key, value
