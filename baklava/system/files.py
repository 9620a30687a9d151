"""Reading and writing files so that a reader never sees half of one."""

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

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def expand_home(path: str | Path) -> Path:
    """With the home folder for the `~` or `~user` that it begins with, where there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes `path`'s place only if the block ends well.

    What processes that were killed had begun to write for `path` is removed. Write the file in place: a lock on it
    shows that its writer lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    unfinished, handle = _begun(path)
    try:
        yield unfinished
        os.fsync(handle)  # where a full disk shows at last, and so that a power failure leaves no empty file
        unfinished.replace(path)
    except OSError as error:
        if error.errno in NO_ROOM:
            message = f"{os.strerror(error.errno)}; earlier files are as they were, make room and run again"
            raise OSError(error.errno, message, str(path)) from None
        raise
    finally:
        unfinished.unlink(missing_ok=True)
        os.close(handle)


def _begun(path: Path) -> tuple[Path, int]:
    """A new file that no other process takes for abandoned as long as its handle is open."""
    while True:
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
        handle = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if try_lock(handle) is None or unfinished.exists():  # else it was removed before the lock held
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

    See `to_plain` for what they may hold. Raises `UserError` for anything else, naming the file and the key.
    """
    described = to_plain({"schema_version": schema, **values}, path)
    with atomic(path) as unfinished:
        text = json.dumps({**described, "sha256": _checksum(described)}, indent=1, allow_nan=False)
        unfinished.write_text(text + "\n", encoding="utf-8")


def to_plain(value: Any, path: Path, key: str = "") -> Any:
    """A value as JSON holds it: NumPy's numbers and arrays and a tensor as plain ones, paths as texts.

    Numbers that are not finite become null, for which JSON has no other form. Raises `UserError` for anything else,
    naming the file it is for and the key.
    """
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {_key(name): to_plain(one, path, f"{key}.{name}".lstrip(".")) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(one, path, key) for one in value]
    if hasattr(value, "tolist"):  # not imported here, as that takes long
        return to_plain(value.tolist(), path, key)
    raise UserError(f"{path}: {key}: a {type(value).__name__} cannot be saved; give a number, a text, or lists of them")


def _key(name: Any) -> Any:
    """Of an object; JSON turns the others into texts."""
    return os.fspath(name) if isinstance(name, os.PathLike) else name.item() if hasattr(name, "item") else name


def read_json(path: Path, *, schema: int, what: str) -> dict[str, Any]:
    """Read what `write_json` wrote. Raises `UserError` for a missing, broken or newer file.

    The checksum may be missing, so that a file can be written by hand.
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
    if version != schema:
        newer = "a newer" if version > schema else "an older"
        raise UserError(f"{path}: {what} schema {version}, from {newer} BaKlaVa; this one reads schema {schema}")
    if checksum is not None and checksum != _checksum(values):
        raise UserError(
            f"{path}: the {what} file does not match its checksum; remove it and make it again, or remove its key "
            "sha256 if you changed it yourself"
        )
    del values["schema_version"]
    return values


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
