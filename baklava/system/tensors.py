"""Safetensors files with a JSON header that carries their schema version and a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from baklava.errors import UserError
from baklava.system.files import atomic, to_plain

Arrays = Mapping[str, NDArray[np.float32]]


def write_tensors(path: Path, arrays: Arrays, header: Mapping[str, Any], *, schema: int, what: str) -> None:
    """Write arrays and a header of plain values, atomically."""
    tensors = {
        name: np.ascontiguousarray(values) for name, values in arrays.items()
    }  # other arrays would be saved in the wrong order
    described = to_plain({"schema_version": schema, **header}, path)
    text = json.dumps({**described, "sha256": _checksum(described, tensors)}, sort_keys=True, allow_nan=False)
    with atomic(path) as unfinished:
        unfinished.write_bytes(save(tensors, metadata={what: text}))


def read_tensors(path: Path, *, schema: int, what: str, hint: str) -> tuple[dict[str, Any], Arrays]:
    """Read header and arrays that `write_tensors` wrote. Raises `UserError` for a missing, broken or newer file.

    `what` names the kind of file and `hint` the command that makes it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such {what}; make it with {hint}")
    try:
        with safe_open(path, "np") as file:
            header = json.loads((file.metadata() or {})[what])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["schema_version"] != schema:
            raise UserError(f"{path}: a {what} of another schema; remove it and make it again")
        if header.pop("sha256") != _checksum(header, arrays):
            raise UserError(f"{path}: the {what} does not match its checksum; remove it and make it again")
    except UserError:
        raise
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable {what} ({line}); remove it and make it again") from None
    del header["schema_version"]
    return header, arrays


def _checksum(header: Mapping[str, Any], arrays: Arrays) -> str:
    """Digest everything that the file holds; safetensors itself would not notice a flipped bit."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        values = arrays[name]
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()
