"""A model for lm-evaluation-harness whose KV caches have budgets. Needs the extra `lm-eval`.

    python -m baklava.evaluation.harness --model baklava --tasks TASK --batch_size 8 \\
        --model_args pretrained=FOLDER,budgets=0.7.json,eviction=streaming_llm

runs `lm_eval` with this model registered; all of its other arguments are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from baklava.budgets import Budgets
from baklava.cache.budgeted import BudgetedCache
from baklava.errors import UserError
from baklava.models import resolve

Pair = tuple[Any, list[int], list[int]]  # texts, tokens of the context, tokens of the continuation


@register_model("baklava")
class BudgetedLM(HFLM):
    """A Hugging Face model that reads each prompt, compresses it, and answers from what is left.

    All of a prompt but its last token is compressed, the question included (`question_aware`), so that the first token
    of the answer sees the compressed cache, too. `budgets` is a file, or a folder or hub repository with `ratio`; the
    other arguments are those of `BudgetedCache`, and of the harness' model `hf`.
    """

    def __init__(
        self,
        pretrained: str,
        budgets: str,
        eviction: str = "streaming_llm",
        ratio: float | None = None,
        decoding: Any = "grow",
        compress_above: int | None = None,
        **settings: Any,
    ):
        super().__init__(resolve(pretrained), **{**settings, "backend": "causal", "logits_cache": False})
        self.model.set_attn_implementation("baklava")
        is_file = ratio is None or Path(budgets).is_file()
        self._budgets = Budgets.load(budgets) if is_file else Budgets.from_pretrained(budgets, ratio=float(ratio or 0))
        if ratio is not None and abs(self._budgets.ratio - float(ratio)) > 1e-9:
            raise UserError(f"{budgets}: budgets for ratio {self._budgets.ratio:g}, {ratio} is asked for")
        self._settings = {
            "eviction": eviction,
            "decoding": decoding,
            "compress_above": None if compress_above is None else int(compress_above),
        }
        self._kv_bytes: list[int] = []  # of a batch, and its rows, entries and tokens
        self._n_rows = self._n_kept = self._n_seen = 0

    def get_model_info(self) -> dict[str, Any]:
        """With the budgets, and what KV caches really took: the harness writes it into its results."""
        kept = {
            "kv_bytes": sum(self._kv_bytes) / max(1, self._n_rows),
            "kept_fraction": self._n_kept / max(1, self._n_seen),
        }
        return {**super().get_model_info(), "baklava": {"budgets": str(self._budgets), **self._settings, **kept}}

    def _read(self, tokens: Tensor, mask: Tensor) -> BudgetedCache:
        """A cache that holds contexts `[B, T]`, padded on the left, compressed."""
        cache = BudgetedCache(self.model, self._budgets, **self._settings)
        cache.prefill(self.model, tokens, mask)
        kept = cache.kept_entries()  # [L, B, Hkv]
        self._kv_bytes.append(cache.kv_bytes())
        self._n_rows += len(tokens)
        self._n_kept += int(kept.sum())
        self._n_seen += int(mask.sum()) * kept.shape[0] * kept.shape[2]
        return cache

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
        with torch.inference_mode():
            cache = self._read(context[:, :-1], settings["attention_mask"][:, :-1])
            return super()._model_generate(context, max_length, stop, past_key_values=cache, **settings)

    def _loglikelihood_tokens(
        self, requests: list[Pair], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        size = int(override_bs or (self.batch_size if str(self.batch_size).isdecimal() else 1))
        order = sorted(range(len(requests)), key=lambda index: -len(requests[index][1]))  # rows of a batch are alike
        answers: dict[int, tuple[float, bool]] = {}
        for start in tqdm(range(0, len(order), size), disable=disable_tqdm, desc="loglikelihood"):
            batch = order[start : start + size]
            found = self._continuations([requests[index] for index in batch])
            answers.update(zip(batch, found, strict=True))
            for index in batch:
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
        return [answers[index] for index in range(len(requests))]

    @torch.inference_mode()
    def _continuations(self, batch: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding writes."""
        contexts = [context[-(self.max_length - len(answer)) :] for _, context, answer in batch]
        length = max(len(context) for context in contexts)
        if min(len(context) for context in contexts) < 2:
            raise UserError("a request has no context that could be compressed; use the model hf for such tasks")
        longest = max(len(answer) for _, _, answer in batch)
        tokens = torch.full((len(batch), length + longest), self.eot_token_id, device=self.device)
        mask = torch.ones_like(tokens)
        for row, (context, (_, _, answer)) in enumerate(zip(contexts, batch, strict=True)):
            padding = length - len(context)
            tokens[row, padding : length + len(answer)] = torch.tensor([*context, *answer], device=self.device)
            mask[row, :padding] = 0
        cache = self._read(tokens[:, : length - 1], mask[:, : length - 1])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        read = slice(length - 1, length + longest - 1)  # tokens after a short continuation are seen by none of its own
        logits = self.model(
            tokens[:, read],
            attention_mask=mask[:, : read.stop],
            position_ids=positions[:, read],
            past_key_values=cache,
            use_cache=True,
        ).logits
        scores = logits.float().log_softmax(-1)
        found = []
        for row, (_, _, answer) in enumerate(batch):
            chosen = torch.tensor(answer, device=self.device)
            own = scores[row, : len(answer)]
            found.append((float(own.gather(1, chosen[:, None]).sum()), bool((own.argmax(-1) == chosen).all())))
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise UserError(
            "loglikelihood_rolling reads texts without a context that could be compressed; use the model hf"
        )


if __name__ == "__main__":
    cli_evaluate()
