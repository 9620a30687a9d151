"""Files with a score per head: KVzip's tensors, HeadKV's JSON, tables and safetensors of any origin."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from baklava.errors import UserError, first_line
from baklava.system.foreign_files import MAX_BYTES, check_file, check_zip, checked_numbers, read_json_value

if TYPE_CHECKING:
    from torch import Tensor

READERS = "a .pt file with one tensor, .safetensors with one tensor, or .json"


def read_scores(path: Path, n_layers: int, n_kv_heads: int, n_q_heads: int) -> NDArray[np.float32]:
    """Scores `[L, Hq]`; those of a KV head hold for each of its query heads.

    Raises `UserError` that names the file, for another shape or kind of file, and for scores that are no numbers of at
    least 0. Nothing in a file is executed.
    """
    check_file(path)
    read = {".pt": _read_tensor, ".safetensors": _read_safetensors, ".json": _read_json}.get(path.suffix)
    if read is None:
        raise UserError(f"{path}: scores of heads are read from {READERS}")
    scores = checked_numbers(read(path), path, "scores", axes=("layers", "heads"))
    if scores.shape not in ((n_layers, n_kv_heads), (n_layers, n_q_heads)):
        raise UserError(
            f"{path}: scores: {list(scores.shape)} are neither [layers, KV heads] {[n_layers, n_kv_heads]} nor "
            f"[layers, query heads] {[n_layers, n_q_heads]} of this model"
        )
    if scores.max() > np.finfo(np.float32).max:
        raise UserError(f"{path}: scores: {scores.max():g} is too large for float32; scale them")
    return np.repeat(scores, n_q_heads // scores.shape[1], axis=1).astype(np.float32)


def _read_tensor(path: Path) -> Any:
    import torch

    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path}: a pickle of another kind than torch.save makes today, which is not read; save it anew"
        )
    try:
        check_zip(path)
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # of many kinds, for files of any content
        raise UserError(f"{path}: not a tensor that can be read without executing it ({first_line(error)})") from None
    if not isinstance(tensor, torch.Tensor):
        raise UserError(f"{path}: scores: expected one tensor, got {type(tensor).__name__}")
    return _to_numbers(tensor, path)


def _to_numbers(tensor: Tensor, path: Path) -> Any:
    is_dense = str(tensor.layout) == "torch.strided" and not (tensor.is_nested or tensor.is_meta)
    if not is_dense or tensor.is_complex() or tensor.is_quantized:
        raise UserError(f"{path}: scores: expected one tensor of real numbers, each in its place")
    if tensor.numel() > MAX_BYTES // 8:  # of a few numbers that are repeated
        raise UserError(f"{path}: scores: {tensor.numel()} are too many; at most {MAX_BYTES // 8}")
    try:
        return tensor.detach().float().numpy()
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path}: scores: not to be read as numbers ({first_line(error)})") from None


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({first_line(error)})") from None
    if len(tensors) != 1:
        raise UserError(f"{path}: scores: expected one tensor, got {len(tensors)} ({', '.join(sorted(tensors)[:5])})")
    return _to_numbers(next(iter(tensors.values())), path)


def _read_json(path: Path) -> Any:
    """A table `[layers][heads]`, or HeadKV's object of "layer-head" with the scores of several samples, averaged."""
    values = read_json_value(path)
    if not isinstance(values, dict):
        return values
    places = {}
    for key, samples in values.items():
        match = re.fullmatch(r"(\d{1,4})-(\d{1,4})", key)
        if match is None:
            raise UserError(f"{path}: {key!r}: expected keys such as 0-0, of a layer and a head")
        samples = samples if isinstance(samples, list) else [samples]
        places[int(match[1]), int(match[2])] = checked_numbers(samples, path, key, axes=("samples",)).mean()
    n_layers, n_heads = (1 + max((place[axis] for place in places), default=-1) for axis in (0, 1))
    if not places or len(places) != n_layers * n_heads:
        raise UserError(f"{path}: {len(places)} keys are not one for each of {n_layers} layers x {n_heads} heads")
    return [[places[layer, head] for head in range(n_heads)] for layer in range(n_layers)]
