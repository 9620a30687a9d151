"""Reads layers, heads and windows of a decoder from a model's config, or says why it cannot have budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from baklava.decoder.families import REFUSED
from baklava.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What a layer of each kind keeps instead of a KV cache of all tokens (kinds as in transformers' `layer_types`).
UNSUPPORTED_KINDS = {
    "chunked_attention": "chunked attention",
    "indexed_attention": "attention to entries that an indexer picks",
    "compressed_sparse_attention": "compressed attention",
    "heavily_compressed_attention": "compressed attention",
    "minimax_m3_sparse": "attention to entries that an indexer picks",
    "linear_attention": "linear attention or a state space",
    "conv": "a convolution",
    "hybrid": "attention beside a state space",
    "hybrid_sliding": "attention beside a state space",
    "moe": "no attention",
}


@dataclass(frozen=True)
class Decoder:
    """The layers of a decoder and their sizes.

    `windows` has the sliding window of every layer, None for those that see all tokens: these have budgets, and heads
    and their dimension are theirs. In the others, a token's key has at most `window_numbers` numbers. `n_positions` is
    the longest text that the model is made for, 0 where its config does not say.
    """

    windows: tuple[int | None, ...]
    n_q_heads: int
    n_kv_heads: int
    head_dim: int
    window_numbers: int
    hidden: int
    intermediate: int
    vocabulary: int
    n_positions: int

    @property
    def budgeted_layers(self) -> list[int]:
        """Indices of the layers that see all tokens, whose KV caches have budgets."""
        return [i for i, window in enumerate(self.windows) if window is None]


def decoder_of(config: PreTrainedConfig) -> Decoder:
    """Read the decoder from a model's config, from its `text_config` if it has one.

    Raises `UserError` with the reason if budgets cannot apply to the model.
    """
    text = text_config(config)
    for model_type in (config.model_type, text.model_type):
        if model_type in REFUSED:
            raise UserError(f"{model_type!r} models are not supported: {REFUSED[model_type]}")
    layers = _layer_configs(text)
    for layer in layers if _differ(text) else layers[:1]:
        if reason := _refusal(layer):
            raise UserError(reason)
    windows = _windows(text, layers)
    sizes = [_sizes(layer) for layer in layers]
    if len(budgeted := {size for size, window in zip(sizes, windows, strict=True) if window is None}) > 1:
        raise UserError("its layers differ in their heads, and budgets need layers of one size")
    n_q_heads, n_kv_heads, head_dim = budgeted.pop()
    windowed = [n * dim for (_, n, dim), window in zip(sizes, windows, strict=True) if window is not None]
    hidden = text.hidden_size
    return Decoder(
        windows=windows,
        n_q_heads=n_q_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        window_numbers=max(windowed, default=0),
        hidden=hidden,
        intermediate=_first(layers[0], "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden,
        vocabulary=text.vocab_size,
        n_positions=_n_positions(text),
    )


def text_config(config: PreTrainedConfig) -> Any:
    """Return the config of the decoder. Raises `UserError` if there is none, or more than one."""
    if config.is_encoder_decoder:
        raise UserError("it is an encoder-decoder; BaKlaVa needs a decoder-only model")
    try:
        return config.get_text_config(decoder=True)
    except ValueError:
        raise UserError("it has more than one decoder, and budgets are for one") from None


def _refusal(text: Any) -> str | None:
    """Say why single settings of a decoder's config rule out budgets; None if none does."""
    if _first(text, "encoder_layers", "num_encoder_layers"):
        return "it is the decoder of an encoder-decoder; BaKlaVa needs a decoder-only model"
    if hasattr(text, "add_cross_attention") and getattr(text, "is_decoder", None) is False:
        return "it is an encoder (is_decoder is false); BaKlaVa needs a decoder"
    if getattr(text, "is_causal", True) is False or getattr(text, "use_bidirectional_attention", None) is True:
        return "its attention looks ahead; BaKlaVa needs a causal decoder"
    if getattr(text, "add_cross_attention", False):
        return "it has cross-attention (add_cross_attention); BaKlaVa needs a decoder-only model"
    if _first(text, "kv_lora_rank"):
        return "multi-head latent attention (kv_lora_rank) is not supported: its KV heads share one latent"
    if _first(text, "num_kv_shared_layers"):
        return "KV caches shared between layers (num_kv_shared_layers) are not supported"
    return None


def _windows(text: Any, layers: Sequence[Any]) -> tuple[int | None, ...]:
    """The sliding window of every layer, None where all tokens are seen or a window is longer than any text.

    Raises `UserError` for layers of another kind, and where no layer sees all tokens.
    """
    kinds = getattr(text, "layer_types", None) or [_kind(layer) for layer in layers]
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        reason = f" ({UNSUPPORTED_KINDS[unknown[0]]})" if unknown[0] in UNSUPPORTED_KINDS else ""
        raise UserError(
            f"layers of type {unknown[0]!r}{reason} are not supported; known: full_attention, sliding_attention"
        )
    n_positions = _n_positions(text)
    windows: list[int | None] = []
    for kind, layer in zip(kinds, layers, strict=True):
        window = layer.sliding_window if kind == "sliding_attention" else None
        windows.append(None if window is None or 0 < n_positions <= window else window)
    if None not in windows:
        raise UserError("every layer of this model has a sliding window, so there is nothing to budget")
    return tuple(windows)


def _n_positions(text: Any) -> int:
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    return reachable_positions(_first(text, "max_position_embeddings") or 0, rope)


def reachable_positions(n_positions: int, rope: Mapping[str, Any]) -> int:
    """The longest text that a model is made for, in tokens, from its `max_position_embeddings` and its rotation.

    A scaled rotation reaches `factor` times as far as the positions that the model was trained on at first: the
    rotation's `original_max_position_embeddings`, or `n_positions` where it names none. `rope` holds the parameters of
    all layers, or those of each type of layer.
    """
    lengths = [n_positions]
    for parameters in (rope, *rope.values()):
        factor = parameters.get("factor") if isinstance(parameters, Mapping) else None
        if isinstance(factor, int | float):
            lengths.append(int((parameters.get("original_max_position_embeddings") or n_positions) * factor))
    return max(lengths)


def _kind(layer: Any) -> str:
    """Conclude the kind of a layer from its config, as transformers' own cache does, where `layer_types` is missing."""
    if getattr(layer, "sliding_window", None) is not None:
        return "sliding_attention"
    return "full_attention" if getattr(layer, "attention_chunk_size", None) is None else "chunked_attention"


def _layer_configs(text: Any) -> Sequence[Any]:
    """Return a config for every layer: the same one, unless the layers differ."""
    n_layers = _first(text, "num_hidden_layers")
    if not n_layers or not _first(text, "hidden_size"):
        raise UserError("its config is not a decoder's: it has no num_hidden_layers or no hidden_size")
    return list(text.per_layer_config) if _differ(text) else [text] * n_layers


def _differ(text: Any) -> bool:
    return bool(getattr(text, "is_heterogeneous", False))


def _sizes(layer: Any) -> tuple[int, int, int]:
    """Return the numbers of query heads and KV heads, and the dimension of a head."""
    n_q_heads = _first(layer, "num_attention_heads")
    if not n_q_heads:
        raise UserError("its config is not a decoder's: it has no num_attention_heads")
    dim = _first(layer, "head_dim", "kv_channels") or layer.hidden_size // n_q_heads
    if _first(layer, "v_head_dim") not in (None, dim):
        raise UserError("keys and values of different dimensions (v_head_dim) are not supported")
    return n_q_heads, _n_kv_heads(layer, n_q_heads), dim


def _n_kv_heads(layer: Any, n_q_heads: int) -> int:
    """Count KV heads; a config that names none has as many as query heads (plain multi-head attention)."""
    if layer.model_type == "falcon" and not layer.new_decoder_architecture:
        return 1 if layer.multi_query else n_q_heads
    return _first(layer, "num_key_value_heads", "num_kv_heads") or n_q_heads


def _first(config: Any, *names: str) -> int | None:
    """Return the first of these settings that is an integer."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if type(value) is int), None)
