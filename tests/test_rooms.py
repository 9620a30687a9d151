"""The house: rooms in the order in which data flows, none of which imports upward."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A room imports from rooms of earlier groups only.
ORDER = (
    ("errors",),
    ("system",),
    ("decoder",),
    ("eviction", "tasks"),
    ("budgets",),
    ("cache",),
    ("importance",),
    ("allocation",),
    ("experiment",),
    ("models",),
    ("training",),
    ("calibration",),
    ("inference",),
    ("profiling", "search", "evaluation"),
    ("analysis",),
    ("report",),
    ("tracking",),
    ("claims", "validation"),
    ("preflight",),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
HEAVY = ("torch", "transformers", "mlflow", "pandas", "matplotlib", "datasets", "optuna", "plotly")
LONGEST_MODULE = 300
MAX_ENTRIES = 27


def modules(repository: Path) -> Iterator[tuple[str, Path]]:
    """Every module of the package as (room, file); the package's own face is above all rooms."""
    package = repository / "baklava"
    for file in sorted(package.rglob("*.py")):
        if file != package / "__init__.py":
            yield file.relative_to(package).with_suffix("").parts[0], file


def imported_rooms(file: Path) -> Iterator[str]:
    """Rooms that a module imports from, inside functions and for types too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{file}: a relative import"
            names = [f"{node.module}.{name.name}" for name in node.names] if node.module == "baklava" else [node.module]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("baklava."))


def test_no_room_imports_upward(repository: Path) -> None:
    upward = [
        f"{file.relative_to(repository)} imports {other}"
        for room, file in modules(repository)
        for other in imported_rooms(file)
        if other in RANK and other != room and RANK[other] >= RANK[room]
    ]
    assert upward == []


def test_every_module_is_in_a_room(repository: Path) -> None:
    assert {room for room, _ in modules(repository)} == set(RANK)


def test_top_of_the_package_is_short(repository: Path) -> None:
    entries = [path.name for path in (repository / "baklava").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_ENTRIES


def test_modules_are_short(repository: Path) -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for _, file in modules(repository)}
    assert {str(file.relative_to(repository)): n for file, n in lengths.items() if n > LONGEST_MODULE} == {}


@pytest.mark.parametrize("room", sorted(set(RANK) - {"__main__"}))
def test_faces_of_rooms_are_light(room: str) -> None:
    script = f"import sys, baklava.{room}\nprint([name for name in {HEAVY} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
