"""Reads and writes files atomically: a reader never sees half of one."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from baklava.errors import UserError
from baklava.system.lock import try_lock

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def expand_home(path: str | Path) -> Path:
    """Replace a leading `~` or `~user` by that home folder, if it exists."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it replaces `path` only if the block succeeds.

    Temporary files of killed processes are removed first: a lock shows which ones still have a living writer. So write
    to the yielded file itself, and do not replace it by another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    unfinished, handle = _create_locked(path)
    try:
        yield unfinished
        os.fsync(handle)  # reports a full disk, and makes sure that a power failure leaves no empty file
        unfinished.replace(path)
    except OSError as error:
        if error.errno in DISK_FULL:
            message = f"{os.strerror(error.errno)}; earlier files are as they were, make room and run again"
            raise OSError(error.errno, message, str(path)) from None
        raise
    finally:
        unfinished.unlink(missing_ok=True)
        os.close(handle)


def _create_locked(path: Path) -> tuple[Path, int]:
    """Create a temporary file that no other process takes for abandoned as long as its handle is open."""
    while True:
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
        handle = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if try_lock(handle) is None or unfinished.exists():  # else another process removed it before the lock was there
            return unfinished, handle
        os.close(handle)


def _remove_abandoned(path: Path) -> None:
    for unfinished in path.parent.glob(f".{glob.escape(path.name)}.*.unfinished"):
        try:
            handle = os.open(unfinished, os.O_RDWR)
        except FileNotFoundError:
            continue
        if try_lock(handle):
            unfinished.unlink(missing_ok=True)
        os.close(handle)


def write_json(path: Path, values: dict[str, Any], *, schema: int) -> None:
    """Write `values` with their schema version first and a checksum last, indented, keys in the order given.

    `to_plain` says what they may hold. Raises `UserError` for anything else and names the file and the key.
    """
    described = to_plain({"schema_version": schema, **values}, path)
    with atomic(path) as unfinished:
        text = json.dumps({**described, "sha256": _checksum(described)}, indent=1, allow_nan=False)
        unfinished.write_text(text + "\n", encoding="utf-8")


def write_plain_json(path: Path, values: dict[str, Any]) -> None:
    """Write `values` for another program, atomically: without a schema version or a checksum."""
    text = json.dumps(to_plain(values, path), indent=1, allow_nan=False)
    with atomic(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def to_plain(value: Any, path: Path, key: str = "") -> Any:
    """Convert a value to what JSON holds: numbers and arrays of NumPy and tensors to plain ones, paths to strings.

    NaN and infinite numbers become null, since JSON has no form for them. Raises `UserError` for anything else and
    names the key and the file it is meant for.
    """
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {_to_key(name): to_plain(item, path, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, path, key) for item in value]
    if hasattr(value, "tolist"):  # does not import NumPy or torch, which takes long
        return to_plain(value.tolist(), path, key)
    raise UserError(f"{path}: {key}: a {type(value).__name__} cannot be saved; give a number, a text, or lists of them")


def _to_key(name: Any) -> Any:
    """Convert a key of an object to one that JSON accepts or turns into a string."""
    return os.fspath(name) if isinstance(name, os.PathLike) else name.item() if hasattr(name, "item") else name


def read_json(path: Path, *, schema: int | tuple[int, ...], what: str) -> dict[str, Any]:
    """Read what `write_json` wrote. Raises `UserError` for a missing or broken file, or another schema.

    A file without a checksum is accepted, so that people can write one by hand.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what} file") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable {what} file ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict) or type(values.get("schema_version")) is not int:
        raise UserError(f"{path}: not a {what} file: it has no schema_version")
    checksum = values.pop("sha256", None)
    version = values["schema_version"]
    known = (schema,) if isinstance(schema, int) else schema
    if version not in known:
        newer = "a newer" if version > max(known) else "an older"
        raise UserError(f"{path}: {what} schema {version}, from {newer} BaKlaVa; this one reads schema {max(known)}")
    if checksum is not None and checksum != _checksum(values):
        raise UserError(
            f"{path}: the {what} file does not match its checksum; remove it and make it again, or remove its key "
            "sha256 if you changed it yourself"
        )
    del values["schema_version"]
    return values


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
