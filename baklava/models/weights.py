"""The weight files of a model: which of them are loaded, what their headers say, and how many bytes they take.

A folder may hold the same weights twice, for example as safetensors and as `pytorch_model.bin`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from baklava.errors import UserError, first_line
from baklava.experiment.components import ModelConfig
from baklava.models import local_model
from baklava.models.gguf_file import is_gguf
from baklava.models.gguf_header import read_gguf_header

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}

# Safetensors types that loading converts to the model's own type; all other types are quantised and stay as they are.
FLOATS = {"F64", "F32", "F16", "BF16"}

# In the order in which transformers looks for them; an index names the shards.
_KNOWN = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_COPIES = ("model*.safetensors", "consolidated*.safetensors", "pytorch_model*.bin", *_KNOWN[1::2])


class TensorHeader(NamedTuple):
    """Type, shape and end (bytes after the header) of one tensor in a safetensors file."""

    dtype: str
    shape: list[int]
    end: int


def find_weight_files(folder: Path) -> list[Path]:
    """The files that are loaded, any of which may be missing. Without a known name: all safetensors or `.bin` files.

    Raises `UserError` for an index that cannot be read.
    """
    first = _find_known(folder)
    if first is None:
        return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return [first] if first.suffix != ".json" else _read_shards(first)


def find_unused_copies(folder: Path) -> list[Path]:
    """Files that hold the same weights once more and are not loaded; none where no file has a known name."""
    first = _find_known(folder)
    if first is None:
        return []
    loaded = {first, *find_weight_files(folder)}
    return sorted(path for pattern in _COPIES for path in folder.glob(pattern) if path not in loaded)


def _find_known(folder: Path) -> Path | None:
    return next((folder / name for name in _KNOWN if (folder / name).is_file()), None)


def _read_shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(index.parent / name for name in names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: not a readable index of weights ({' '.join(str(error).split())})") from None


def read_tensor_headers(path: Path) -> list[TensorHeader]:
    """The header of every tensor in a safetensors file. Raises `UserError` for a broken file.

    Such a file begins with the length of its JSON header, in eight bytes.
    """
    try:
        with path.open("rb") as file:
            header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        return [TensorHeader(tensor["dtype"], tensor["shape"], int(tensor["data_offsets"][1])) for tensor in tensors]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({' '.join(str(error).split())})") from None


def check_complete(path: Path) -> None:
    """Raise `UserError` where a safetensors file is not as long as its header says."""
    ends = [tensor.end for tensor in read_tensor_headers(path)]
    with path.open("rb") as file:
        expected = 8 + int.from_bytes(file.read(8), "little") + max(ends, default=0)
    if path.stat().st_size != expected:
        raise UserError(
            f"{path}: {path.stat().st_size} bytes where its header says {expected}: cut short or damaged; "
            "download or copy it again"
        )


def weight_bytes(model: ModelConfig) -> int:
    """Bytes of the weights once loaded in the model's dtype, from the headers of its safetensors or GGUF files.

    Raises `UserError` naming the model where there are no such files.
    """
    n_bytes = sum(
        math.prod(shape) * (ITEMSIZE[model.dtype] if dtype in FLOATS else _stored_size(dtype))
        for dtype, shape in _read_shapes(model)
    )
    if not n_bytes:
        raise UserError(f"model {model.name}: {model.path} has no safetensors files, so the weights cannot be sized")
    return n_bytes


def _stored_size(dtype: str) -> int:
    """Bytes of one number of a safetensors type: F8_E4M3, I8, U32, BOOL, ..."""
    bits = "".join(character for character in dtype.partition("_")[0] if character.isdigit())
    return max(1, int(bits or 8) // 8)


def _read_shapes(model: ModelConfig) -> Iterator[tuple[str, list[int]]]:
    """Type and shape of every tensor of a model, on this machine or on the hub."""
    folder = _find_local_folder(model)
    if folder is not None and is_gguf(folder):
        yield from (("F32", list(tensor.shape)) for tensor in read_gguf_header(folder).tensors.values())  # dequantised
        return
    if folder is not None:
        for path in find_weight_files(folder):
            if path.suffix == ".safetensors":
                yield from ((tensor.dtype, tensor.shape) for tensor in read_tensor_headers(path))
        return
    from huggingface_hub import get_safetensors_metadata

    try:
        metadata = get_safetensors_metadata(model.path, revision=model.revision)
    except Exception as error:  # no network, no such repository, no safetensors, ...
        reason = first_line(error)
        raise UserError(f"model {model.name}: cannot read the sizes of {model.path}'s weights: {reason}") from None
    for file in metadata.files_metadata.values():
        for tensor in file.tensors.values():
            yield tensor.dtype, tensor.shape


def _find_local_folder(model: ModelConfig) -> Path | None:
    """The model's folder or file, or its snapshot in the hub's cache; None where its weights are not here."""
    folder = local_model(model.path)
    if folder is not None and folder.exists():
        return folder
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    snapshot = Path(cached).parent if isinstance(cached, str) else None
    return snapshot if snapshot is not None and any(snapshot.glob("*.safetensors")) else None
