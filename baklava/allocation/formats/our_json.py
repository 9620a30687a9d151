"""Our own budgets files: one of a ratio, or a folder with one per ratio, as a search writes them."""

from __future__ import annotations

from pathlib import Path

from baklava.allocation.formats.base import Expressed, Format, Options
from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.system.foreign_files import check_file


class Json(Format):
    """Exact in both directions. Budgets of one ratio say nothing of another, so no other is made of them."""

    name = "json"
    keeps_bits = True
    reads = frozenset({"ratio"})
    writes = frozenset()

    def read(self, path: Path, options: Options) -> Budgets:
        if path.is_dir():
            path = path / f"{self.needs(options, 'ratio', path, 'a folder holds a file per ratio'):g}.json"
        check_file(path)
        budgets = Budgets.load(path)
        if options.ratio is not None and abs(budgets.ratio - options.ratio) > 1e-9:
            raise UserError(
                f"{path}: budgets for ratio {budgets.ratio:g}, {options.ratio:g} is asked for; give that ratio, or a "
                f"folder with a file {options.ratio:g}.json"
            )
        return budgets

    def write(self, budgets: Budgets, output: Path, options: Options) -> Expressed:
        budgets.save(output)
        return Expressed(budgets.shares, "none, it is our own format")


class Kvpress(Format):
    """The same file, for the press in `baklava/allocation/formats/kvpress_press.py`."""

    name = "kvpress"
    writes = frozenset()

    def write(self, budgets: Budgets, output: Path, options: Options) -> Expressed:
        budgets.save(output)
        return Expressed(budgets.shares, "none, BudgetsPress(Budgets.load(FILE), press) takes every share as it is")
