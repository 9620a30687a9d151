"""What a model's files tell before any library is loaded: whether it can be used as it is asked to, and which it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from baklava.decoder.config import reachable_positions
from baklava.errors import UserError
from baklava.experiment.schema import ModelConfig
from baklava.models import model_folder
from baklava.models.weights import other_copies, weight_files
from baklava.system.fingerprint import folder_fingerprint

# Architectures of models that generate; of others, the name ends with what they do instead.
GENERATES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


def check_model(model: ModelConfig, lengths: dict[str, int]) -> None:
    """Raise `UserError` where a local model is missing, no decoder, or has too few positions for one of the lengths.

    `lengths` are named by their keys in the configuration. Of a model that is on a hub nothing is known here.
    """
    folder = model_folder(model.path)
    if folder is None:
        return
    key = f"models.{model.name}.path"
    if not folder.is_dir():
        raise UserError(
            f"{key}: no such folder: {model.path}; give a folder with a model, or a hub id such as ORG/NAME"
        )
    config = _read(folder / "config.json", key)
    if config.get("is_encoder_decoder"):
        raise UserError(f"{key}: {model.path} is an encoder-decoder; BaKlaVa needs a decoder-only model")
    names = config.get("architectures") or []
    if names and not any(str(name).endswith(GENERATES) for name in names):
        raise UserError(f"{key}: {model.path} is a {names[0]}; BaKlaVa needs a decoder that generates (...ForCausalLM)")
    weights = weight_files(folder)
    if not weights:
        raise UserError(f"{key}: {model.path} has no weights (*.safetensors); download all files of the model")
    for file in weights:
        if not file.is_file():
            raise UserError(f"{file}: missing, or a link to nothing; download all files of the model")
        if file.suffix == ".safetensors":
            _check_whole(file)
    positions = _n_positions(config)
    for name, length in lengths.items():
        if positions is not None and length > positions:
            raise UserError(
                f"{name}: {length} tokens are more than the {positions} positions of model {model.name}; "
                f"set {name} to {positions} or less"
            )


def model_fingerprint(model: ModelConfig) -> str | None:
    """What stands for the files: a fingerprint of them where they are in a folder here, else the revision."""
    folder = model_folder(model.path)
    if folder is None or not folder.is_dir():
        return model.revision
    return folder_fingerprint(folder, leave_out=other_copies(folder))


def tensors_of(path: Path) -> list[tuple[str, list[int], int]]:
    """Kind of number, shape and end of every tensor of a safetensors file. Raises `UserError` for a broken one.

    Such a file begins with the length of its JSON header, in eight bytes.
    """
    try:
        with path.open("rb") as file:
            header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors = [one for name, one in header.items() if name != "__metadata__"]
        return [(one["dtype"], one["shape"], int(one["data_offsets"][1])) for one in tensors]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({' '.join(str(error).split())})") from None


def _check_whole(path: Path) -> None:
    """The header says how long the file must be."""
    ends = [end for _, _, end in tensors_of(path)]
    with path.open("rb") as file:
        expected = 8 + int.from_bytes(file.read(8), "little") + max(ends, default=0)
    if path.stat().st_size != expected:
        raise UserError(
            f"{path}: {path.stat().st_size} bytes where its header says {expected}: cut short or damaged; "
            "download or copy it again"
        )


def _read(path: Path, key: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{key}: {path.parent} has no config.json; give the folder of a model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable model config ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a model config; give the folder of a model")
    return config


def _n_positions(config: dict[str, Any]) -> int | None:
    """The longest text that a model is made for, from its `config.json`; None where that does not say."""
    for values in (config, config.get("text_config")):
        if isinstance(values, dict) and type(n_positions := values.get("max_position_embeddings")) is int:
            rope = values.get("rope_scaling") or values.get("rope_parameters")
            # Phi-3 names the original length beside the rotation's parameters.
            original = {key: values[key] for key in ("original_max_position_embeddings",) if key in values}
            return reachable_positions(n_positions, {**(rope if isinstance(rope, dict) else {}), **original})
    return None
