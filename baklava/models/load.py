"""Loading a model and its tokenizer, ready for budgeted caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from baklava import attention
from baklava.config import ModelConfig
from baklava.context import budgeted_layers
from baklava.errors import UserError
from baklava.models import reference_model_path

REFERENCE = "reference:"


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with the `baklava` attention, and its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        return self.model.device

    @cached_property
    def budgeted_layers(self) -> list[int]:
        """Indices of the layers that see all tokens, whose KV caches have budgets."""
        return budgeted_layers(self.model.config.get_text_config(decoder=True))

    @property
    def n_layers(self) -> int:
        """How many layers have budgets."""
        return len(self.budgeted_layers)

    @property
    def n_q_heads(self) -> int:
        return self.model.config.num_attention_heads

    @property
    def n_kv_heads(self) -> int:
        return self.model.config.num_key_value_heads

    def encode(self, text: str, *, begin: bool = False) -> list[int]:
        """Token ids; `begin` adds the special tokens that the tokenizer puts before a text."""
        return self.tokenizer.encode(text, add_special_tokens=begin)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def count_tokens(self, text: str) -> int:
        return len(self.encode(text, begin=True))


def resolve(config: ModelConfig) -> str:
    """The folder or hub id to load from."""
    if config.path.startswith(REFERENCE):
        return str(reference_model_path(config.path.removeprefix(REFERENCE)))
    return config.path


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(
            resolve(config), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model {config.name}: cannot load the tokenizer from {config.path}: {_line(error)}") from None


def load_model(config: ModelConfig) -> LoadedModel:
    """Load weights and tokenizer. Raises `UserError` naming the model where either is missing or unfit."""
    tokenizer = load_tokenizer(config)
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            resolve(config),
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=config.trust_remote_code,
            attn_implementation=attention.NAME,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model {config.name}: cannot load {config.path}: {_line(error)}") from None
    for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        if not isinstance(getattr(model.config, name, None), int):
            raise UserError(f"model {config.name}: its config has no {name}; BaKlaVa needs a decoder with KV heads")
    nn.Module.to(model, device)
    return LoadedModel(config.name, model.eval(), tokenizer)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
