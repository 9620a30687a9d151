"""The sizes of a model, from its config: no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from baklava.decoder.config import decoder_of
from baklava.errors import UserError
from baklava.experiment.components import ModelConfig
from baklava.models.load import load_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder: `n_layers` layers see all tokens and have budgets, `n_windowed` see the last `window` only.

    Heads and dimension are those of layers with budgets; in windowed layers a token's key has `window_numbers` numbers.
    `n_positions` is the longest text that it is made for, 0 where its config does not say.
    """

    n_layers: int
    n_windowed: int
    window: int
    n_q_heads: int
    n_kv_heads: int
    head_dim: int
    window_numbers: int
    hidden: int
    intermediate: int
    vocabulary: int
    n_positions: int = 0

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of one token's keys and values in one layer."""
        return 2 * self.n_kv_heads * self.head_dim * itemsize


def read_shape(model: ModelConfig) -> ModelShape:
    """Read the sizes of a model from its config. Raises `UserError` naming the model where that is impossible."""
    return shape_of(load_config(model), model.name)


def shape_of(config: PreTrainedConfig, name: str) -> ModelShape:
    """The sizes of the model `name`, from its config. Raises `UserError` naming a model that is no decoder."""
    try:
        decoder = decoder_of(config)
    except UserError as error:
        raise UserError(f"model {name}: {error}") from None
    return ModelShape(
        n_layers=len(decoder.budgeted_layers),
        n_windowed=len(decoder.windows) - len(decoder.budgeted_layers),
        window=max((window for window in decoder.windows if window is not None), default=0),
        n_q_heads=decoder.n_q_heads,
        n_kv_heads=decoder.n_kv_heads,
        head_dim=decoder.head_dim,
        window_numbers=decoder.window_numbers,
        hidden=decoder.hidden,
        intermediate=decoder.intermediate,
        vocabulary=decoder.vocabulary,
        n_positions=decoder.n_positions,
    )
