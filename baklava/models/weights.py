"""Which files of a model's folder hold the weights that are loaded: a folder may hold them twice."""

from __future__ import annotations

import json
from pathlib import Path

from baklava.errors import UserError

# In the order in which transformers looks for them; an index names the shards.
_KNOWN = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_COPIES = ("model*.safetensors", "consolidated*.safetensors", "pytorch_model*.bin", *_KNOWN[1::2])


def weight_files(folder: Path) -> list[Path]:
    """The files that are loaded, each of which may be missing; files of other names where there is none of the known.

    Raises `UserError` for an index that cannot be read.
    """
    first = next((folder / name for name in _KNOWN if (folder / name).is_file()), None)
    if first is None:
        return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return [first] if first.suffix != ".json" else _shards(first)


def other_copies(folder: Path) -> list[Path]:
    """Files that hold the same weights once more and are not loaded; none where the folder is unlike others."""
    first = next((folder / name for name in _KNOWN if (folder / name).is_file()), None)
    if first is None:
        return []
    loaded = {first, *weight_files(folder)}
    return sorted(path for pattern in _COPIES for path in folder.glob(pattern) if path not in loaded)


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(index.parent / name for name in names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: not a readable index of weights ({' '.join(str(error).split())})") from None
