"""A press for kvpress that gives every KV head its budget. Needs kvpress, which this package does not install.

budgets = Budgets.load("results/mine/budgets/my-model/baklava/snapkv/0.7.json")
with BudgetsPress(budgets, SnapKVPress())(model): ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from kvpress import BasePress, ScorerPress
from torch import Tensor

from baklava.budgets import Budgets
from baklava.errors import UserError


@dataclass
class BudgetsPress(BasePress):
    """The best entries by the score of `press`, as many in each KV head as its budget allows.

    As kvpress' own presses per head do, it masks the others and saves no memory.
    """

    budgets: Budgets
    press: ScorerPress

    def post_init_from_model(self, model: Any) -> None:
        shape = (model.config.num_hidden_layers, model.config.num_key_value_heads)
        if self.budgets.shape != shape:
            raise UserError(f"budgets are [layers, KV heads] {list(self.budgets.shape)}, the model is {list(shape)}")
        self.press.post_init_from_model(model)

    @property
    def compression_ratio(self) -> float:
        return self.budgets.ratio

    def compress(
        self, module: Any, hidden_states: Tensor, keys: Tensor, values: Tensor, attentions: Tensor, kwargs: dict
    ) -> tuple[Tensor, Tensor]:
        n_entries = keys.shape[2]
        counts = torch.from_numpy(self.budgets.entries(n_entries)[int(module.layer_idx)]).to(keys.device)
        masked = torch.zeros(keys.shape[:3], dtype=torch.bool, device=keys.device)
        for count in set(counts.tolist()):
            # Some scores depend on the ratio: that of StreamingLLM says what lies between sinks and window.
            self.press.compression_ratio = 1.0 - min(1.0, (count + 0.5) / n_entries)
            scores = self.press.score(module, hidden_states, keys, values, attentions, kwargs)  # [B, Hkv, S]
            worst = scores.argsort(dim=-1, descending=True, stable=True)[..., count:]
            masked |= torch.zeros_like(masked).scatter(-1, worst, True) & (counts == count)[None, :, None]
        module.masked_key_indices = torch.where(masked)
        return keys, values
