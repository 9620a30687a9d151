"""What a checkpoint says of a model without a weight being read: its shape, and the bytes that it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from baklava.decoder.config import decoder_of
from baklava.errors import UserError, first_line
from baklava.experiment.schema import ModelConfig
from baklava.models.files import tensors_of
from baklava.models.load import load_config, resolve
from baklava.models.weights import weight_files
from baklava.system.files import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}

# Kinds of numbers in safetensors files that loading turns into the model's own; others are quantised and stay.
FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder. `n_layers` see all tokens and have budgets, `n_windowed` see the last `window` only.

    Heads and dimension are those of layers with budgets; in the others a token's key has `window_numbers` numbers.
    """

    n_layers: int
    n_windowed: int
    window: int
    n_q_heads: int
    n_kv_heads: int
    head_dim: int
    window_numbers: int
    hidden: int
    intermediate: int
    vocabulary: int

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of one token's keys and values in one layer."""
        return 2 * self.n_kv_heads * self.head_dim * itemsize


def read_shape(model: ModelConfig) -> ModelShape:
    """From the checkpoint's config. Raises `UserError` naming the model where there is none, or it is no decoder's."""
    return shape_of(load_config(model), model.name)


def shape_of(config: PreTrainedConfig, name: str) -> ModelShape:
    """From the config of the model `name`. Raises `UserError` naming it where it is no decoder's."""
    try:
        decoder = decoder_of(config)
    except UserError as error:
        raise UserError(f"model {name}: {error}") from None
    return ModelShape(
        n_layers=len(decoder.budgeted_layers),
        n_windowed=len(decoder.windows) - len(decoder.budgeted_layers),
        window=max((window for window in decoder.windows if window is not None), default=0),
        n_q_heads=decoder.n_q_heads,
        n_kv_heads=decoder.n_kv_heads,
        head_dim=decoder.head_dim,
        window_numbers=decoder.window_numbers,
        hidden=decoder.hidden,
        intermediate=decoder.intermediate,
        vocabulary=decoder.vocabulary,
    )


def weight_bytes(model: ModelConfig) -> int:
    """Bytes of the weights once loaded in the model's arithmetic, from the headers of its safetensors files.

    Raises `UserError` naming the model where there are no such files.
    """
    n_bytes = sum(
        math.prod(shape) * (ITEMSIZE[model.dtype] if kind in FLOATS else _stored_size(kind))
        for kind, shape in _tensors(model)
    )
    if not n_bytes:
        raise UserError(f"model {model.name}: {model.path} has no safetensors files, so the weights cannot be sized")
    return n_bytes


def _stored_size(kind: str) -> int:
    """Bytes of one number: F8_E4M3, I8, U32, BOOL, ..."""
    bits = "".join(character for character in kind.partition("_")[0] if character.isdigit())
    return max(1, int(bits or 8) // 8)


def _tensors(model: ModelConfig) -> Iterator[tuple[str, list[int]]]:
    """Kind of number and shape of every tensor."""
    folder = _local_folder(model)
    if folder is not None:
        for path in weight_files(folder):
            if path.suffix == ".safetensors":
                yield from ((kind, shape) for kind, shape, _ in tensors_of(path))
        return
    from huggingface_hub import get_safetensors_metadata

    try:
        metadata = get_safetensors_metadata(model.path, revision=model.revision)
    except Exception as error:  # no network, no such repository, no safetensors, ...
        raise UserError(
            f"model {model.name}: cannot read the sizes of {model.path}'s weights: {first_line(error)}"
        ) from None
    for file in metadata.files_metadata.values():
        for tensor in file.tensors.values():
            yield tensor.dtype, tensor.shape


def _local_folder(model: ModelConfig) -> Path | None:
    """Where the files lie on this machine, if they do."""
    folder = expanded(resolve(model))
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    snapshot = Path(cached).parent if isinstance(cached, str) else None
    return snapshot if snapshot is not None and any(snapshot.glob("*.safetensors")) else None
