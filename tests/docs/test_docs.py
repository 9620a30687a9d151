"""What README and docs quote exists: commands, paths, settings, names; and figures come from files in the repository."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
FOLDERS = ("baklava/", "benchmarks/", "conf/", "config/", "docs/", "tests/", "workflow/")
# Names that examples make up for the reader's own files.
INVENTED = {"my-model", "mine", "passkey", "value_norm", "wedge", "output_norm", "cluster", "NAME"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code_of(text: str) -> str:
    """Fenced blocks and code spans of a page, one per line."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return "\n".join([*fenced, *spans])


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def is_invented(word: str) -> bool:
    return any(name in re.split(r"[/.\\_,\[\]]|\b", word) or name in word for name in INVENTED) or "<" in word or "..." in word


@pages
class TestWhatIsQuotedExists:
    def test_links(self, page: Path) -> None:
        links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
        missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert missing == []

    def test_paths(self, page: Path) -> None:
        words = re.findall(r"[\w.*/{}<>-]+", code_of(page.read_text()))
        paths = [word.rstrip(".") for word in words if word.startswith(FOLDERS) and not is_invented(word)]
        missing = [path for path in paths if not list(ROOT.glob(path.rstrip("/")))]
        assert missing == []

    def test_make_targets(self, page: Path) -> None:
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        quoted = re.findall(r"\bmake ([a-z][a-z-]+)", code_of(page.read_text()))
        assert [target for target in quoted if target not in targets] == []

    def test_commands(self, page: Path) -> None:
        from baklava.cli import _parser

        known = next(action.choices for action in _parser()._actions if action.dest == "command")
        quoted = re.findall(r"(?:^|[ /])baklava ([a-z][a-z-]+)\b", code_of(page.read_text()), flags=re.MULTILINE)
        assert [command for command in quoted if command not in known] == []

    def test_settings(self, page: Path) -> None:
        unknown = [word for word in settings_of(page) if not is_known(*word)]
        assert unknown == []

    def test_python(self, page: Path) -> None:
        for block in python_blocks(page.read_text()):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module is not None:
                    module = importlib.import_module(node.module)
                    assert [name.name for name in node.names if not hasattr(module, name.name)] == []

    def test_figures(self, page: Path) -> None:
        """A table below `<!-- figures: FILE -->` shows what the file holds."""
        for file, table in re.findall(r"<!-- figures: (\S+) -->\n((?:\|.*\n)+)", page.read_text()):
            figures = json.loads((ROOT / file).read_text())
            header, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
            assert header[1:] == figures["columns"]
            shown = [f"{{:.{figures['decimals']}f}}".format]
            expected = [
                [row["label"], *("" if value is None else shown[0](value) for value in row["values"])]
                for row in figures["rows"]
            ]
            assert [[row[0], *(cell.strip("*") for cell in row[1:])] for row in rows] == expected


def settings_of(page: Path) -> Iterator[tuple[str, str]]:
    """Every KEY=VALUE that a page quotes for a command of ours, but those of other programs."""
    for key, value in re.findall(r"(?<![\w-])([a-z_][\w.-]*)=([\w./\[\],-]*)", code_of(page.read_text())):
        if "_" in key and key.isupper():
            continue
        yield key, value


def is_known(key: str, value: str) -> bool:
    ...
