"""Shares from a budgets file that was made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from baklava.allocation.base import Allocator, FitContext, budgets_of
from baklava.allocation.fitted import Fitted
from baklava.allocation.formats.base import Options, check_options
from baklava.allocation.formats.convert import find_format, read_budgets
from baklava.budgets import Budgets
from baklava.budgets.bits import EXACT
from baklava.errors import UserError
from baklava.system.files import expand_home

if TYPE_CHECKING:
    from baklava.importance.profile import Profile

Tokens = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class BudgetsFile(Allocator):
    """Budgets of a file in one of the formats that `baklava import` reads, at the ratio that is evaluated.

    Our own format (`json`) holds one ratio a file: `path` is then a file for the only ratio, or a folder with
    `0.7.json` and so on. The others hold proportions, from which budgets of any ratio follow (docs/deploy.md).
    `context`, `sinks` and `window` are what the format needs beside the ratio.
    """

    family: ClassVar[str] = "budgets_file"

    path: str | None = None
    format: str = "json"
    context: Annotated[int, Field(ge=1)] | None = None
    sinks: Tokens | None = None
    window: Tokens | None = None

    def check(self) -> None:
        kind = find_format(self.format, verb="read")
        check_options(kind, self._options(0.0), used=kind.reads, verb="read")
        self._path()

    def _path(self) -> Path:
        if self.path is None:
            raise UserError(
                f"allocator {self.name}: path: none given; set allocators.{self.name}.path to a file of budgets"
            )
        path = expand_home(self.path)
        if not path.exists():
            raise UserError(f"allocator {self.name}: path: no such file: {self.path}")
        return path

    def _options(self, ratio: float) -> Options:
        return Options(ratio=ratio, context=self.context, sinks=self.sinks, window=self.window)

    def _read(self, profile: Profile, ratio: float) -> Budgets:
        budgets, shape = (
            read_budgets(self._path(), self.format, self._options(ratio)),
            (profile.n_layers, profile.n_kv_heads),
        )
        if budgets.shape != shape:
            raise UserError(
                f"allocator {self.name}: {self.path} is [layers, KV heads] {list(budgets.shape)}, the profile asks for "
                f"{list(shape)}"
            )
        return budgets

    def shares(self, profile: Profile, ratio: float) -> NDArray[np.float64]:
        return self._read(profile, ratio).shares

    def fit(self, context: FitContext) -> Fitted:
        """As of `shares`, with the origin of the file in the provenance."""
        budgets = {}
        for ratio in context.ratios:
            read = self._read(context.profile, ratio)
            if read.bits is not None or self.bits != EXACT:
                raise UserError(
                    f"allocator {self.name}: {self.path}: budgets with bits are used as they are (BudgetedCache), not "
                    "read as shares; give shares of entries, and leave bits out"
                )
            made = budgets_of(self, context.profile, ratio)
            budgets[ratio] = replace(made, provenance={**read.provenance, **made.provenance})
        return Fitted(budgets)
