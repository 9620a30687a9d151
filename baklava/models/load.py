"""Loading a model and its tokenizer, ready for budgeted caches."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from baklava.cache.attention import dense as attention
from baklava.cache.prefill import ContextCache
from baklava.decoder.attention_path import AttentionPath
from baklava.decoder.config import Decoder, decoder_of
from baklava.decoder.length_dependent_rope import Switch, switch_of
from baklava.decoder.placement import device_of
from baklava.decoder.releases import set_tqdm_hook
from baklava.decoder.trace_attention import trace_attention_paths
from baklava.errors import UserError, first_line
from baklava.experiment.chat_settings import TemplateValue
from baklava.experiment.components import ModelConfig
from baklava.models import resolve
from baklava.models.encoder import Encoder
from baklava.models.gguf import load_gguf_config, load_gguf_model, load_gguf_tokenizer
from baklava.models.gguf_file import is_gguf
from baklava.models.placement import choose_device, free_memory, placement_settings


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with the `baklava` attention, and its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template_kwargs: Mapping[str, TemplateValue] = field(default_factory=dict)  # variables for its chat template

    @cached_property
    def device(self) -> torch.device:
        """Where tokens are read; layers may compute elsewhere."""
        return device_of(self.model.get_input_embeddings())

    @cached_property
    def decoder(self) -> Decoder:
        """The layers of the model and their sizes."""
        return decoder_of(self.model.config)

    @property
    def budgeted_layers(self) -> list[int]:
        """Indices of the layers that see all tokens, whose KV caches have budgets."""
        return self.decoder.budgeted_layers

    @property
    def n_layers(self) -> int:
        """The number of layers that have budgets."""
        return len(self.budgeted_layers)

    @property
    def has_windows(self) -> bool:
        """Whether some layers see a sliding window only."""
        return self.n_layers < len(self.decoder.windows)

    @cached_property
    def attention_paths(self) -> dict[int, AttentionPath]:
        """How the attention of each layer that has budgets reaches the residual stream. Raises `UserError`."""
        return trace_attention_paths(self.model, self.budgeted_layers)

    @property
    def n_q_heads(self) -> int:
        return self.decoder.n_q_heads

    @property
    def n_kv_heads(self) -> int:
        return self.decoder.n_kv_heads

    @property
    def n_positions(self) -> int:
        """The longest text that the model is made for; without end where its config does not say."""
        return self.decoder.n_positions or sys.maxsize

    @cached_property
    def switch(self) -> Switch | None:
        """The length at which the rotation changes; None where it does not depend on the length of a text."""
        return switch_of(self.model.config.get_text_config(decoder=True))

    def rotated_for(self, length: int) -> int | None:
        """A length that represents all texts with the same rotation as one of `length` tokens; None: all texts."""
        return None if self.switch is None else self.switch.representative(length)

    def free_memory(self) -> int:
        """Free bytes for KV caches on the model's devices."""
        return free_memory(self.model, len(self.decoder.windows))

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer)

    def encode(self, text: str, *, begin: bool = False) -> list[int]:
        """Token ids of a text that continues another, or, with `begin`, of a complete text with its special tokens.

        `encoder.encode_parts` encodes a text that comes in parts.
        """
        return self.encoder.encode(text, begin=True) if begin else self.encoder.encode_continuation(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def count_tokens(self, text: str) -> int:
        return self.encoder.count(text)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer. Raises `UserError` naming the model where there is none."""
    with _loading(f"model {config.name}: cannot load the tokenizer from {config.path}"):
        file = _gguf_file(config)
        return load_gguf_tokenizer(file) if file else AutoTokenizer.from_pretrained(**_source(config))


def load_config(config: ModelConfig) -> PreTrainedConfig:
    """Load a model's config. Raises `UserError` naming the model where there is none."""
    with _loading(f"model {config.name}: cannot read the config of {config.path}"):
        file = _gguf_file(config)
        return load_gguf_config(file) if file else AutoConfig.from_pretrained(**_source(config))


def load_model(config: ModelConfig) -> LoadedModel:
    """Load weights and tokenizer. Raises `UserError` naming the model where either is missing or unusable."""
    pretrained = load_config(config)
    try:
        decoder_of(pretrained)  # refuses a model before any weight is read
    except UserError as error:
        raise UserError(f"model {config.name}: {error}") from None
    tokenizer = load_tokenizer(config)
    device = choose_device(config)
    with _loading(f"model {config.name}: cannot load {config.path}"), _no_bar_in_a_log():
        placement = placement_settings(config)
        settings = {"dtype": getattr(torch, config.dtype), "attn_implementation": attention.NAME, **placement}
        if file := _gguf_file(config):
            model = load_gguf_model(file, pretrained, **settings)
        else:
            model = auto_class(pretrained).from_pretrained(**_source(config), **settings)
    if not placement:
        nn.Module.to(model, device)
    loaded = LoadedModel(config.name, model.eval().requires_grad_(False), tokenizer, config.chat_template_kwargs)
    _probe(loaded)
    return loaded


def _source(config: ModelConfig) -> dict[str, Any]:
    """Arguments of every `from_pretrained`: where to load from, and whether foreign code may run."""
    return {
        "pretrained_model_name_or_path": resolve(config.path),
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
    }


def _gguf_file(config: ModelConfig) -> Path | None:
    path = Path(resolve(config.path))
    return path if is_gguf(path) else None


def auto_class(config: PreTrainedConfig) -> Any:
    """The class to load with: the text model where there is one, else the model of text and images or sound."""
    kind = type(config)
    only_multimodal = kind in MODEL_FOR_MULTIMODAL_LM_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForMultimodalLM if only_multimodal else AutoModelForCausalLM


@torch.inference_mode()
def _probe(loaded: LoadedModel) -> None:
    """Read two tokens. Raises `UserError` naming a model that does not use the cache and the attention as it must."""
    cache = ContextCache(loaded.model.config, [])
    ids = torch.zeros(1, 2, dtype=torch.int64, device=loaded.device)
    settings = {"position_ids": torch.arange(2, device=loaded.device)[None], "use_cache": True, "logits_to_keep": 1}
    with _loading(f"model {loaded.name}: cannot read a text with it"):
        loaded.model(ids, past_key_values=cache, **settings)
        cache.check_read(2)


@contextmanager
def _no_bar_in_a_log() -> Iterator[None]:
    """Hide transformers' bar of loaded tensors where no terminal draws it; that of a download stays."""
    if sys.stderr.isatty():
        yield
        return
    before = set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
    try:
        yield
    finally:
        set_tqdm_hook(before)


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Turn whatever a broken file, a missing package or foreign code may raise into a `UserError` of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own; if you trust it, set trust_remote_code to true beside the model's path"
        raise UserError(f"{what}: {reason}") from None
