"""The notebook runs, and what builds images names files, extras and a Python that exist."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml


def cells(repository: Path) -> list[str]:
    notebook = json.loads((repository / "docs" / "quickstart.ipynb").read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_short_and_keeps_an_answer_that_uniform_budgets_lose(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cells(repository)
    assert sum(bool(line.strip()) for cell in code for line in cell.splitlines()) <= 35
    names: dict[str, Any] = {}
    for cell in code:
        exec(compile(cell, "quickstart.ipynb", "exec"), names)
    assert names["score"]["duo"] >= names["score"]["uniform"] + 0.25
    assert "r = 0.7" in capsys.readouterr().out


@pytest.fixture
def extras(repository: Path) -> set[str]:
    return set(tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@pytest.mark.parametrize("file", ["Dockerfile", "apptainer.def"])
def test_images_are_made_of_what_is_there(file: str, repository: Path, extras: set[str]) -> None:
    text = (repository / file).read_text()
    if file == "Dockerfile":
        copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()]
    else:
        copied = re.findall(r"^ {4}(\S+) /baklava/", text, re.M)
    assert {"constraints.txt", "baklava", "conf", "workflow", "Snakefile"} <= set(copied)
    assert [name for name in copied if not (repository / name).exists()] == []
    ignored = (repository / ".dockerignore").read_text().splitlines()
    assert not set(copied) & set(ignored)
    [named] = re.findall(r"-e '\.\[([\w,-]+)\]'", text)
    assert set(named.split(",")) <= extras
    assert "-c constraints.txt" in text
    [minor] = re.findall(r"python:3\.(\d+)-slim", text)
    assert int(minor) >= 11


def test_the_workflow_can_be_a_module_of_another(repository: Path) -> None:
    """In a module, what Snakemake puts into a message is looked up where the names of this workflow are not known."""
    known = {"input", "output", "params", "wildcards", "log", "threads", "resources"}
    for file in (repository / "workflow" / "rules").glob("*.smk"):
        for message in re.findall(r'message:\n +"(.*)"', file.read_text()):  # an f-string has its names by then
            assert set(re.findall(r"{(\w+)", message)) <= known, (file.name, message)


def test_the_catalog_finds_what_it_asks_for(repository: Path) -> None:
    usage = yaml.safe_load((repository / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment"}
    assert usage["mandatory-flags"]["desc"]
    assert set(usage["software-stack-deployment"]) == {"conda", "apptainer", "apptainer+conda", "report"}
    for name in ("workflow/Snakefile", "config/README.md"):
        assert (repository / name).is_file()
    assert {"snakemake", "workflow"} <= set(re.findall(r"\w+", (repository / "README.md").read_text().lower()))


def test_the_action_runs_the_tests_as_everyone_does(repository: Path) -> None:
    text = (repository / ".github" / "workflows" / "test.yml").read_text()
    assert re.search(r"- run: make test$", text, re.M)
