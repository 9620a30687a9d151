"""LU-KV's curves of prune ratios, as `lu_curve` reads them."""

from __future__ import annotations

from pathlib import Path

from baklava.allocation.formats.base import Format, Options
from baklava.allocation.lu_curve import curve_shares, read_curve
from baklava.budgets import Budgets
from baklava.system.foreign_files import check_file


class LuKV(Format):
    """Read: interpolated at the ratio and scaled to its total, as in the allocator `lu_curve`."""

    name = "lu-kv"
    reads = frozenset({"ratio"})

    def read(self, path: Path, options: Options) -> Budgets:
        check_file(path)
        removed, ratio = read_curve(path), self.ratio(options, path)
        return self.imported(path, curve_shares(removed, ratio, source=str(path)), options)
