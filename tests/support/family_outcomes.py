"""What becomes of a model family under budgets, found out on a tiny random model: a row of `docs/families.md`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tiny_families import VOCABULARY, tiny_config, tiny_model
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from baklava import BudgetedCache, Budgets
from baklava.decoder.config import Decoder, decoder_of
from baklava.errors import UserError
from baklava.experiment.settings import ProfileConfig
from baklava.models.load import LoadedModel
from baklava.profiling.recorder import Recorder

N_CONTEXT, STEPS = 24, (3, 1, 1)
LENGTH = N_CONTEXT + sum(STEPS)
SINKS = 4  # of StreamingLLM
# Norms, gates and rotations are computed in float32, also in a model in float64.
TOLERANCE = {"rtol": 0, "atol": 1e-4}
NOT_TRIED = dict.fromkeys(["fast_vlm", "perception_lm"], "the image encoder needs the package timm")
MATTERS = 1e-2  # that evicted entries matter: logits are around 5


@dataclass(frozen=True)
class Outcome:
    """What budgets do with a family (`exact`, `refused`), and whether its models can be profiled; and why not."""

    budgets: str
    note: str
    profile: str


def outcome_of(family: str) -> Outcome:
    """Build a model and compare. Raises `AssertionError` where it computes something else than it should."""
    config = tiny_config(family)
    try:
        decoder = decoder_of(config)
    except UserError as error:
        return Outcome("refused", str(error), "")
    if family in NOT_TRIED:
        return Outcome("not tried", NOT_TRIED[family], "")
    model = tiny_model(config)
    check_logits(model, decoder)
    check_prefill_in_chunks(model, decoder)
    n_windows = len(decoder.windows) - len(decoder.budgeted_layers)
    note = "layers with a sliding window stay whole" if n_windows else ""
    return Outcome("exact", note, profile_of(model, decoder))


def budgets_of(decoder: Decoder, ratio: float) -> Budgets:
    return Budgets.uniform(n_layers=len(decoder.budgeted_layers), n_kv_heads=decoder.n_kv_heads, ratio=ratio)


def tokens(*, rows: int = 1) -> Tensor:
    return torch.randint(1, VOCABULARY - 10, (rows, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits_of(model: PreTrainedModel, cache: Any, ids: Tensor, *, start: int = 0) -> Tensor:
    """Logits of the context in one pass, then of the steps; the context begins at `start`."""
    ends = [N_CONTEXT, *(N_CONTEXT + sum(STEPS[: n + 1]) for n in range(len(STEPS)))]
    parts = [ids[:, begin:end] for begin, end in zip([start, *ends], ends, strict=False)]
    return torch.cat([model(part, past_key_values=cache, use_cache=True).logits for part in parts], 1)


def check_logits(model: PreTrainedModel, decoder: Decoder) -> None:
    """With all entries as with a `DynamicCache`; with half of them as with the others masked, and exactly so many."""
    ids, half = tokens(), N_CONTEXT // 2
    plain = logits_of(model, DynamicCache(config=model.config), ids)
    reference = masked_logits(model, decoder, ids, evicted=slice(SINKS, N_CONTEXT - half + SINKS))
    model.set_attn_implementation("baklava")
    torch.testing.assert_close(
        logits_of(model, BudgetedCache(model.config, budgets_of(decoder, 0.0), compress_above=0), ids),
        plain,
        **TOLERANCE,
    )
    cache = BudgetedCache(model.config, budgets_of(decoder, 0.5), compress_above=0)
    found = logits_of(model, cache, ids)
    assert (cache.kept_entries() == half).all()
    assert cache.kept_entries().shape == (len(decoder.budgeted_layers), 1, decoder.n_kv_heads)
    torch.testing.assert_close(found, reference, **TOLERANCE)
    assert (found - plain)[:, N_CONTEXT:].abs().max() > MATTERS


class MaskedAttention:
    """Plain `T x T` attention for a model's layers in turn; `hidden` `[L, Hkv, T, T]` is true where not to look."""

    def __init__(self) -> None:
        self.hidden = torch.zeros(0)
        self._turn = 0

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **settings: Any
    ) -> tuple[Tensor, None]:
        hidden = self.hidden[self._turn % len(self.hidden)]
        self._turn += 1
        group = query.shape[1] // key.shape[1]
        key, value, hidden = (one.repeat_interleave(group, -3) for one in (key, value, hidden))
        scores = query @ key.transpose(-1, -2) * (settings.get("scaling") or query.shape[-1] ** -0.5)
        if softcap := settings.get("softcap"):
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(hidden | ~attention_mask, float("-inf"))
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def whole_mask(**settings: Any) -> Tensor | None:
    """The mask of a layer, also where it is nothing but causal."""
    return sdpa_mask(**{**settings, "allow_is_causal_skip": False})


MASKED = MaskedAttention()
AttentionInterface.register("masked", MASKED)
AttentionMaskInterface.register("masked", whole_mask)


@torch.inference_mode()
def masked_logits(model: PreTrainedModel, decoder: Decoder, ids: Tensor, *, evicted: slice) -> Tensor:
    """Naive: one pass with all keys, in which the tokens after the context do not see the evicted ones."""
    hidden = torch.zeros(len(decoder.windows), decoder.n_kv_heads, LENGTH, LENGTH, dtype=torch.bool)
    for layer in decoder.budgeted_layers:
        hidden[layer, :, N_CONTEXT:, evicted] = True
    MASKED.hidden = hidden
    model.set_attn_implementation("masked")
    return model(ids, use_cache=False).logits


@torch.inference_mode()
def check_prefill_in_chunks(model: PreTrainedModel, decoder: Decoder) -> None:
    """Rows that are padded and read in chunks go on as rows alone that were read in one pass."""
    ids, n_padding = tokens(rows=2), 5
    mask, budgets = torch.ones_like(ids), budgets_of(decoder, 0.5)
    mask[1, :n_padding] = 0
    together = BudgetedCache(model.config, budgets, compress_above=0)
    together.prefill(model, ids[:, :N_CONTEXT], mask[:, :N_CONTEXT], chunk=7)
    positions = (mask.cumsum(-1) - 1)[:, N_CONTEXT:].contiguous()
    settings = {"attention_mask": mask, "position_ids": positions, "use_cache": True, "logits_to_keep": LENGTH}
    logits = model(ids[:, N_CONTEXT:], past_key_values=together, **settings).logits
    for row, start in enumerate((0, n_padding)):
        alone = logits_of(
            model, BudgetedCache(model.config, budgets, compress_above=0), ids[row : row + 1], start=start
        )
        torch.testing.assert_close(logits[row], alone[0, N_CONTEXT - start :], **TOLERANCE)


def profile_of(model: PreTrainedModel, decoder: Decoder) -> str:
    """Empty where importance can be estimated, else the reason why not."""
    loaded = LoadedModel("m", model, None)  # type: ignore[arg-type]
    try:
        recorder = Recorder(loaded, ProfileConfig())
        with recorder.attached():
            recorder.record(tokens(), torch.arange(N_CONTEXT, LENGTH))
    except UserError as error:
        return str(error).partition(": ")[2] or str(error)
    for heads in recorder.heads.values():
        assert heads.shape == (len(decoder.budgeted_layers), decoder.n_q_heads)
        assert heads.isfinite().all()
    assert recorder.layers.isfinite().all()
    return ""
