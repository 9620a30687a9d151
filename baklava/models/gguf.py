"""Loads a model from a GGUF file that `gguf_file` has checked: its config, its tokenizer, its dequantised weights."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from baklava.models.gguf_file import OUTPUT, head_dim, model_settings, tensor_names
from baklava.models.gguf_header import BLOCK_TYPES, read_gguf_header

TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def load_gguf_config(file: Path) -> PreTrainedConfig:
    """The config that transformers would have of the model in a file."""
    header = read_gguf_header(file)
    values = model_settings(header)
    return AutoConfig.for_model(
        header.settings["general.architecture"],
        vocab_size=header.tensors["token_embd.weight"].shape[0],
        hidden_size=values["embedding_length"],
        intermediate_size=values["feed_forward_length"],
        num_hidden_layers=values["block_count"],
        num_attention_heads=values["attention.head_count"],
        num_key_value_heads=values["attention.head_count_kv"],
        head_dim=head_dim(values),
        max_position_embeddings=values["context_length"],
        rms_norm_eps=values["attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": values.get("rope.freq_base", 10000.0)},
        tie_word_embeddings=OUTPUT not in header.tensors,
        **{name: header.settings.get(f"tokenizer.ggml.{other}") for name, other in TOKENS.items()},
    )


def load_gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a file, from a folder of its own: one that lies beside the file would be taken instead."""
    with TemporaryDirectory() as folder:
        (Path(folder) / file.name).symlink_to(file.resolve())
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=file.name)
    if read_gguf_header(file).settings.get("tokenizer.ggml.pre") == "smollm":
        # transformers does not know this one and cuts as GPT-2 does: "\n\n1" would be three tokens, not two.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def load_gguf_model(file: Path, config: PreTrainedConfig, **settings: Any) -> PreTrainedModel:
    """The model of a file, with `settings` as of `from_pretrained`.

    transformers can do this itself, but parses the file three times over: 13 s instead of 2 s for 135M parameters.
    """
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return model_class.from_pretrained(
        None, config=config, state_dict=read_weights(file, settings["dtype"]), **settings
    )


def read_weights(file: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a file, dequantised, by their names in transformers."""
    from gguf import GGMLQuantizationType, dequantize

    header, data = read_gguf_header(file), np.memmap(file, mode="r")
    names, values = tensor_names(header), model_settings(header)
    is_llama = header.settings["general.architecture"] == "llama"
    n_heads = {"attn_q": values["attention.head_count"], "attn_k": values["attention.head_count_kv"]}
    weights = {}
    for name, tensor in header.tensors.items():
        block, start = BLOCK_TYPES[tensor.type_id], header.data_start + tensor.offset
        *rows, columns = tensor.shape
        shape = (*rows, columns // block.numbers * block.n_bytes)
        stored = data[start : start + int(np.prod(shape))].reshape(shape)
        weight = torch.from_numpy(dequantize(stored, GGMLQuantizationType(tensor.type_id)).copy())
        part = name.split(".")[-2]
        if is_llama and part in n_heads:
            weight = _undo_interleaving(weight, n_heads[part])
        weights[names[name]] = weight.to(dtype)
    return weights


def _undo_interleaving(weight: Tensor, n_heads: int) -> Tensor:
    """Reorder the rows `[heads * dim, in]` of queries or keys: such files have the two numbers of a rotation together.

    transformers has them half a head apart.
    """
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).reshape(weight.shape)
