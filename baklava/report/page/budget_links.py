"""Links to the budgets files, by model and method."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from baklava.analysis.results import budgets_by_key


@dataclass(frozen=True)
class Links:
    """The files of one method: (ratio, address seen from the page)."""

    model: str
    method: str
    files: tuple[tuple[str, str], ...]


def budget_links(budgets: Iterable[Path], folder: Path) -> list[Links]:
    """`folder` is the page's; addresses are relative, so that the results folder can move as a whole."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for compression, path in budgets_by_key(budgets).items():
        address = quote(Path(os.path.relpath(path, folder)).as_posix())
        found[compression.model, f"{compression.allocator} / {compression.eviction}"].append(
            (compression.ratio, address)
        )
    return [Links(*names, tuple(files)) for names, files in found.items()]
