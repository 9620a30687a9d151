"""`baklava import` and `baklava export`: budgets from and to the files of other projects."""

from __future__ import annotations

from pathlib import Path

from baklava.allocation.formats import FORMATS, Format, Options
from baklava.allocation.formats.base import Expressed, check_options
from baklava.budgets import Budgets
from baklava.errors import UserError

# Scores of heads are no budgets: an allocator has to make some of them.
SCORES = ("kvzip", "headkv")


def find_format(name: str, *, verb: str) -> Format:
    """The format of a name. Raises `UserError` for an unknown one, or for one that cannot be read (written)."""
    if name in SCORES:
        raise UserError(
            f"format {name}: its files hold scores of heads, not budgets; profile with the estimator `file`: "
            "profile.estimators=[file] profile.scores=FILE"
        )
    known = [kind.name for kind in FORMATS.values() if (kind.reads if verb == "read" else kind.writes) is not None]
    if name not in known:
        raise UserError(f"format {name}: it cannot be {verb}; known: {', '.join(known)}")
    return FORMATS[name]


def read_budgets(path: Path, name: str, options: Options) -> Budgets:
    """The budgets in a file of a format. Raises `UserError` that names the file and what is wrong."""
    kind = find_format(name, verb="read")
    check_options(kind, options, used=kind.reads, verb="read")
    return kind.read(path, options)


def import_budgets(path: Path, name: str, output: Path, options: Options) -> None:
    """Read a file of another project and write it as a budgets file."""
    budgets = read_budgets(path, name, options)
    budgets.save(output)
    print(f"{output}: {budgets}")


def export_budgets(path: Path, name: str, output: Path, options: Options) -> Expressed:
    """Write a budgets file for another project; print and return by which rule it was rounded and what that lost."""
    kind = find_format(name, verb="written")
    check_options(kind, options, used=kind.writes, verb="written")
    budgets = Budgets.load(path)
    if budgets.bits is not None and not kind.keeps_bits:
        raise UserError(f"{path}: these budgets are quantised ({budgets.width} bits), which format {name} cannot say")
    expressed = kind.write(budgets, output, options)
    print("\n".join([f"{output}: {name}", *expressed.lines(budgets)]))
    return expressed
