"""Reads files that others made: of any content, never executed, never larger in memory than a bound."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baklava.errors import UserError, first_line

MAX_BYTES = 64 * 2**20  # budgets of the largest models take a few MB


def check_file(path: Path) -> None:
    """Raise `UserError` where there is no file of a bearable size."""
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise UserError(f"{path}: not a readable file ({first_line(error)})") from None
    if size is None:
        raise UserError(f"{path}: no such file")
    if size > MAX_BYTES:
        raise UserError(f"{path}: {size} bytes are too many for budgets; at most {MAX_BYTES}")


def read_text(path: Path) -> str:
    check_file(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable text file ({first_line(error)})") from None


def read_json_value(path: Path) -> Any:
    """Whatever JSON is in a file."""
    try:
        return json.loads(read_text(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({first_line(error)})") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    values = read_json_value(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def check_zip(path: Path) -> None:
    """Raise `UserError` where what a zip archive holds is larger than a file may be. Other errors are `zipfile`'s."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_BYTES:
        raise UserError(f"{path}: its arrays take {size} bytes, too many for budgets; at most {MAX_BYTES}")


def read_archive(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file; pickled objects in it are refused."""
    check_file(path)
    try:
        check_zip(path)
        with np.load(path, allow_pickle=False) as archive:
            members = {name: archive[name] for name in archive.files}
    except UserError:
        raise
    except Exception as error:  # of many kinds, for files of any content
        raise UserError(f"{path}: not a readable .npz file ({first_line(error)})") from None
    for name, member in members.items():
        if not isinstance(member, np.ndarray):
            raise UserError(f"{path}: {name}: expected an array, got other content")
    return members


def checked_numbers(
    values: Any, path: Path, field: str, *, high: float = np.inf, axes: Sequence[str] = ("layers", "KV heads")
) -> NDArray[np.float64]:
    """Values as float64, with these axes, in [0, high]. Raises `UserError` that names file and field."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError):  # ragged, for example
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "iuf":
        raise UserError(f"{path}: {field}: expected numbers [{', '.join(axes)}], got others, or rows of unequal length")
    if array.ndim != len(axes) or array.size == 0:
        raise UserError(f"{path}: {field}: expected [{', '.join(axes)}], got shape {list(array.shape)}")
    if array.size > MAX_BYTES // 8:
        raise UserError(f"{path}: {field}: {array.size} numbers are too many for budgets; at most {MAX_BYTES // 8}")
    with np.errstate(over="ignore"):  # becomes infinite, and is refused
        array = array.astype(np.float64)
    if not (np.isfinite(array).all() and (array >= 0).all() and (array <= high).all()):
        bounds = f"in [0, {high:g}]" if np.isfinite(high) else "of at least 0"
        raise UserError(f"{path}: {field}: every value must be a finite number {bounds}")
    return array
