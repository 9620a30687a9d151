"""Safetensors files with a JSON header that carries their schema version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from baklava.errors import UserError
from baklava.files import atomic

Arrays = Mapping[str, NDArray[np.float32]]


def write_tensors(path: Path, arrays: Arrays, header: Mapping[str, Any], *, schema: int, what: str) -> None:
    """Write arrays and a header of plain values, atomically."""
    text = json.dumps({"schema_version": schema, **header}, sort_keys=True)
    with atomic(path) as unfinished:
        save_file(dict(arrays), unfinished, metadata={what: text})


def read_tensors(path: Path, *, schema: int, what: str, hint: str) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays of what `write_tensors` wrote. Raises `UserError` for a missing, broken or newer file.

    `what` names the kind of file and `hint` the command that makes it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such {what}; make it with {hint}")
    try:
        with safe_open(path, "np") as file:
            header = json.loads((file.metadata() or {})[what])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version = header.pop("schema_version")
    except (SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a readable {what} ({error})") from None
    if version != schema:
        raise UserError(f"{path}: a {what} of another schema; make it again with {hint}")
    return header, arrays
