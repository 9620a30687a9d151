"""Links to the budgets files, by model and method."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from baklava.analysis.results import index_budgets


@dataclass(frozen=True)
class Links:
    """The files of one method: (ratio, address seen from the page)."""

    model: str
    method: str
    files: tuple[tuple[str, str], ...]


def link_budgets(budgets: Iterable[Path], folder: Path) -> list[Links]:
    """Link every budgets file, relative to `folder`, the page's: the results folder can then move."""
    by_method: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for key, path in index_budgets(budgets).items():
        address = quote(Path(os.path.relpath(path, folder)).as_posix())
        by_method[key.model, f"{key.allocator} / {key.eviction}"].append((key.ratio, address))
    return [Links(*names, tuple(files)) for names, files in by_method.items()]
