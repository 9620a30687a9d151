"""Attention matching's head budgets: `{"L0H0": share of the total, ...}`, which sum to 1 (arXiv 2602.16284)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from baklava.allocation.formats.base import Expressed, Format, Options
from baklava.allocation.water_filling import water_fill
from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.system.files import write_plain_json
from baklava.system.foreign_files import checked_numbers, read_object

TOLERANCE = 1e-3  # of the sum; files are written by hand, too


class Compaction(Format):
    """Read: the total is shared out in these proportions; what a KV cache cannot take beyond 1 goes to the others."""

    name = "compaction"
    reads = frozenset({"ratio"})
    writes = frozenset()

    def read(self, path: Path, options: Options) -> Budgets:
        values = read_object(path)
        places = {}
        for key in values:
            match = re.fullmatch(r"L(\d{1,4})H(\d{1,4})", key)
            if match is None:
                raise UserError(f"{path}: {key!r}: expected keys such as L0H0, of a layer and a KV head")
            places[int(match[1]), int(match[2])] = values[key]
        n_layers, n_heads = (1 + max((place[axis] for place in places), default=-1) for axis in (0, 1))
        if not places or len(places) != n_layers * n_heads or len(places) != len(values):
            raise UserError(
                f"{path}: {len(values)} keys are not one for each of {n_layers} layers x {n_heads} KV heads"
            )
        table = [[places[layer, head] for head in range(n_heads)] for layer in range(n_layers)]
        if any(isinstance(value, bool) for value in values.values()):
            raise UserError(f"{path}: shares: every value must be a number")
        proportions = checked_numbers(table, path, "shares", high=1.0)
        if abs(proportions.sum() - 1.0) > TOLERANCE:
            raise UserError(f"{path}: shares: they must sum to 1, got {proportions.sum():.6f}")
        ratio = self.ratio(options, path)
        shares = water_fill(proportions.ravel(), total=(1.0 - ratio) * proportions.size, floor=0.0)
        return self.imported(path, shares.reshape(proportions.shape), options)

    def write(self, budgets: Budgets, output: Path, options: Options) -> Expressed:
        total = budgets.shares.sum()
        proportions = budgets.shares / total if total else np.full(budgets.shape, 1.0 / budgets.shares.size)
        places = ((layer, head) for layer in range(budgets.shape[0]) for head in range(budgets.shape[1]))
        write_plain_json(output, {f"L{layer}H{head}": float(proportions[layer, head]) for layer, head in places})
        left_out = f"the ratio, {budgets.ratio:g}, which is an argument where the file is used"
        return Expressed(budgets.shares, "none, shares of the total are written exactly", left_out)
