"""What README and docs quote exists: commands, paths, settings and names; figures come from files in the repository."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from baklava.allocation import ALLOCATORS
from baklava.eviction import POLICIES
from baklava.experiment.components import AllocatorConfig, EvictionConfig, TaskConfig
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.stages import STAGES
from baklava.tasks import FAMILIES

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "config/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = ("baklava/", "benchmarks/", "conf/", "config/", "docs/", "tests/", "workflow/")
# Names that examples make up for the reader's own files.
INVENTED = {"my-model", "mine", "passkey", "value_norm", "wedge", "output_norm", "spread", "cluster", "NAME"}

GROUPS = ("model", "task", "allocator", "eviction", "calibration", "tracking", "experiment")
# Keys of other programs, and of Python calls.
FOREIGN = {"overrides", "gpu", "steps", "pretrained"}
FAMILIES_OF = {
    TaskConfig: tuple(FAMILIES.values()),
    AllocatorConfig: tuple(ALLOCATORS.values()),
    EvictionConfig: tuple(POLICIES.values()),
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code_of(text: str) -> str:
    """Fenced blocks and code spans of a page, one per line; Python, JSON and YAML left out."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    fenced = [block for language, block in blocks if not language]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return "\n".join(
        [*fenced, *(span for span in spans if "(" not in span and '="' not in span.partition("overrides")[0])]
    )


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def is_invented(word: str) -> bool:
    return "<" in word or "..." in word or any(name in word for name in INVENTED)


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
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        quoted = re.findall(r"\bmake ([a-z][a-z0-9-]+)", code_of(page.read_text()))
        assert [target for target in quoted if target not in targets] == []

    def test_commands(self, page: Path) -> None:
        from baklava.cli import _parser

        known = next(action.choices for action in _parser()._actions if action.dest == "command")
        quoted = re.findall(r"(?:^|[ /])baklava ([a-z][a-z-]+)\b", code_of(page.read_text()), flags=re.MULTILINE)
        assert [command for command in quoted if command not in known] == []

    def test_examples_that_change_settings_have_a_name_of_their_own(self, page: Path) -> None:
        """Without one, they would replace the results of the experiment that they begin with."""
        code = code_of(page.read_text()).replace("\\\n", " ")
        commands = re.findall(r"\b(?:snakemake .*overrides=|baklava (?:" + "|".join(("run", *STAGES)) + r") ).*", code)
        changing = [one for one in commands if re.search(r"(?!experiment=|name=)\b[a-z][\w.]*=(?!\")\S", one)]
        assert [one for one in changing if not re.search(r"\bname=|experiment=(?:mine|NAME)\b", one)] == []

    def test_settings(self, page: Path) -> None:
        unknown = [word for word in settings_of(page) if not is_known(*word)]
        assert unknown == []

    def test_python(self, page: Path) -> None:
        for block in python_blocks(page.read_text()):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module is not None and not is_invented(node.module):
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
    """Every KEY=VALUE that a page quotes for a command of ours."""
    for key, value in re.findall(r"(?<![\w.-])\+?([a-z][\w./@-]*)=([\w./\[\],-]*)", code_of(page.read_text())):
        if key not in FOREIGN:
            yield key, value


def is_known(key: str, value: str) -> bool:
    """Whether the key is a choice with these values, or a setting."""
    if key in GROUPS:
        names = [name for name in value.strip("[]").split(",") if name and not is_invented(name)]
        return all((ROOT / "conf" / key / f"{name}.yaml").is_file() for name in names)
    return has_field(ExperimentConfig, key.split("."))


def has_field(kind: Any, path: list[str]) -> bool:
    """Whether a path of names leads through models, mappings by name and families of classes."""
    if not path:
        return True
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            if path[0] in (name, field.alias, field.validation_alias):
                return has_field(field.annotation, path[1:])
        return any(has_attribute(family, path) for family in FAMILIES_OF.get(kind, ()))
    arguments = [argument for argument in get_args(kind) if argument is not type(None)]
    if get_origin(kind) is dict:
        return has_field(arguments[1], path[1:])
    return any(has_field(argument, path) for argument in arguments)


def has_attribute(family: type, path: list[str]) -> bool:
    return len(path) == 1 and path[0] in {field.name for field in dataclasses.fields(family)}


def test_rule_graph_shows_every_stage() -> None:
    labels = re.findall(r"<text [^>]*>([^<]*)</text>", (ROOT / "docs" / "rulegraph.svg").read_text())
    assert set(labels) == {*STAGES, "all"}
