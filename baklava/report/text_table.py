"""A table as text: for the terminal, in Markdown, in LaTeX."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text


class TableCell(NamedTuple):
    """A cell of a table; `best` marks the best score of its row."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class TextTable:
    """Blocks of rows under columns; the first `n_names` columns hold words, the others numbers."""

    columns: tuple[str, ...]
    n_names: int
    blocks: tuple[tuple[tuple[TableCell, ...], ...], ...]

    def terminal(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="left" if i < self.n_names else "right")
        for block in self.blocks:
            for row in block:
                table.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in row))
            table.add_section()
        return table

    def markdown(self) -> str:
        rules = ["---" if i < self.n_names else "---:" for i in range(len(self.columns))]
        rows = [
            [f"**{cell.text}**" if cell.best else cell.text for cell in row] for block in self.blocks for row in block
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.columns, rules, *rows))

    def latex(self) -> str:
        """A `tabular` for the package booktabs."""
        lines = [f"\\begin{{tabular}}{{{'l' * self.n_names}{'r' * (len(self.columns) - self.n_names)}}}", "\\toprule"]
        lines.append(" & ".join(_escape(name) for name in self.columns) + r" \\")
        for block in self.blocks:
            lines.append("\\midrule")
            for row in block:
                cells = [rf"\textbf{{{_escape(cell.text)}}}" if cell.best else _escape(cell.text) for cell in row]
                lines.append(" & ".join(cells) + r" \\")
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _escape(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
