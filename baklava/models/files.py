"""Validates, fingerprints and identifies a model by its files, without importing torch or transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from baklava.decoder.config import reachable_positions
from baklava.errors import UserError
from baklava.experiment.components import ModelConfig
from baklava.models import local_model
from baklava.models.gguf_file import SUFFIX, check_gguf, is_gguf
from baklava.models.weights import check_complete, find_unused_copies, find_weight_files
from baklava.system.fingerprint import fingerprint_file, fingerprint_folder

# Architectures that generate text; the names of other architectures end with what they do instead.
GENERATES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


def check_model(model: ModelConfig, lengths: dict[str, int]) -> None:
    """Raise `UserError` where a local model is missing, no decoder, or has too few positions for one of the lengths.

    `lengths` are named by their keys in the configuration. A model on a hub is not checked.
    """
    place = local_model(model.path)
    if place is None:
        return
    key = f"models.{model.name}.path"
    n_positions = check_gguf(place, key) if is_gguf(place) else _check_folder(model, place, key)
    for name, length in lengths.items():
        if n_positions is not None and length > n_positions:
            raise UserError(
                f"{name}: {length} tokens are more than the {n_positions} positions of model {model.name}; "
                f"set {name} to {n_positions} or less"
            )


def _check_folder(model: ModelConfig, folder: Path, key: str) -> int | None:
    """The number of positions of the model in a folder, where its config names one."""
    if not folder.is_dir():
        raise UserError(
            f"{key}: no such folder: {model.path}; give a folder with a model, or a hub id such as ORG/NAME"
        )
    config = _read_config(folder / "config.json", key)
    if config.get("is_encoder_decoder"):
        raise UserError(f"{key}: {model.path} is an encoder-decoder; BaKlaVa needs a decoder-only model")
    names = config.get("architectures") or []
    if names and not any(str(name).endswith(GENERATES) for name in names):
        raise UserError(f"{key}: {model.path} is a {names[0]}; BaKlaVa needs a decoder that generates (...ForCausalLM)")
    _check_weights(model, folder, key)
    return _n_positions(config)


def model_fingerprint(model: ModelConfig) -> str | None:
    """A fingerprint of a model's files where they are on this machine, else its revision."""
    place = local_model(model.path)
    if place is None or not place.exists():
        return model.revision
    return fingerprint_file(place) if is_gguf(place) else fingerprint_folder(place, find_unused_copies(place))


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """What distinguishes a model's stored results: its files or, where they are elsewhere, its path; and its dtype."""
    place = local_model(model.path)
    is_local = place is not None and place.exists()
    return {"content": model_fingerprint(model), "path": "" if is_local else model.path, **model.arithmetic}


def _read_config(path: Path, key: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        files = ", ".join(sorted(file.name for file in path.parent.glob(f"*{SUFFIX}")))
        hint = f"one of its files {files}" if files else "the folder of a model"
        raise UserError(f"{key}: {path.parent} has no config.json; give {hint}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable model config ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a model config; give the folder of a model")
    return config


def _check_weights(model: ModelConfig, folder: Path, key: str) -> None:
    files = find_weight_files(folder)
    if not files:
        raise UserError(f"{key}: {model.path} has no weights (*.safetensors); download all files of the model")
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: missing, or a link to nothing; download all files of the model")
        if file.suffix == ".safetensors":
            check_complete(file)


def _n_positions(config: dict[str, Any]) -> int | None:
    """The longest text that a model is made for, from its `config.json`; None where that does not say."""
    for values in (config, config.get("text_config")):
        if isinstance(values, dict) and type(n_positions := values.get("max_position_embeddings")) is int:
            rope = values.get("rope_scaling") or values.get("rope_parameters")
            # Phi-3 names the original length beside the rotation's parameters.
            original = {key: values[key] for key in ("original_max_position_embeddings",) if key in values}
            return reachable_positions(n_positions, {**(rope if isinstance(rope, dict) else {}), **original})
    return None
