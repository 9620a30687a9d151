"""What a format is: it reads budgets from a file of another project, writes them to one, or both."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from baklava.budgets import Budgets
from baklava.errors import UserError

MAX_TOKENS = 10**12  # beyond it a number is a mistake, not a context


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a file does not say: the ratio, the context in tokens, and how many of the first and last tokens stay."""

    ratio: float | None = None
    context: int | None = None
    sinks: int | None = None
    window: int | None = None

    def given(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Expressed:
    """What a written file expresses: its shares `[L, Hkv]`, by which rule they were rounded, and what it leaves out."""

    shares: NDArray[np.float64]
    rule: str
    left_out: str = ""

    def lines(self, budgets: Budgets) -> list[str]:
        """The rule, and what it lost in terms of budgets."""
        moved = np.abs(self.shares - budgets.shares)
        largest = np.unravel_index(int(moved.argmax()), moved.shape)
        if moved.max() < 1e-9:
            lost = "nothing: every KV cache has its share"
        else:
            lost = (
                f"shares differ by {moved.mean():.4f} on average, by {moved.max():.4f} at most (layer {largest[0]}, KV "
                f"head {largest[1]}); mean share {budgets.shares.mean():.4f} -> {self.shares.mean():.4f}"
            )
        return [f"rule: {self.rule}", f"lost: {lost}", *([f"not in the file: {self.left_out}"] * bool(self.left_out))]


class Format:
    """A kind of file. `reads` and `writes` name the options that it takes; None: it is not read, or not written."""

    name: ClassVar[str]
    reads: ClassVar[frozenset[str] | None] = None
    writes: ClassVar[frozenset[str] | None] = None
    keeps_bits: ClassVar[bool] = False  # whether quantised budgets can be written

    def read(self, path: Path, options: Options) -> Budgets:
        """The budgets in a file. Raises `UserError` that names the file and what is wrong with it."""
        raise NotImplementedError

    def write(self, budgets: Budgets, output: Path, options: Options) -> Expressed:
        """Write budgets, atomically. Raises `UserError` where the format cannot express them at all."""
        raise NotImplementedError

    def needs(self, options: Options, name: str, path: Path, why: str) -> Any:
        """An option that has to be given. Raises `UserError` where it is not."""
        value = getattr(options, name)
        if value is None:
            raise UserError(f"{path}: {self.name}: {why}; give {name}")
        return value

    def ratio(self, options: Options, path: Path) -> float:
        return self.needs(options, "ratio", path, "the file does not say how much is kept in total")

    def check_tokens(self, kept: int, context: int, path: Path) -> None:
        """Raise `UserError` where sinks and window take the whole context."""
        if kept >= context:
            raise UserError(
                f"{path}: {self.name}: sinks and window are {kept} of {context} tokens; lower them or raise context"
            )

    def imported(self, path: Path, shares: NDArray[np.float64], options: Options, *, model: Any = "") -> Budgets:
        """Budgets with the file they come from in their provenance."""
        try:
            return Budgets.from_shares(
                shares,
                ratio=options.ratio,
                model=model if isinstance(model, str) and model.isprintable() else "",
                allocator=self.name,
                parameters=options.given(),
                provenance={"imported": {"format": self.name, "file": path.name, "sha256": sha256_of(path)}},
            )
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def check_options(kind: Format, options: Options, *, used: frozenset[str] | None, verb: str) -> None:
    """Raise `UserError` where a format is not read (or written), for impossible options, and for those of no use."""
    if used is None:
        raise UserError(f"format {kind.name}: it cannot be {verb}")
    for name, value in options.given().items():
        if name not in used:
            raise UserError(f"format {kind.name}: {name} has no effect when it is {verb}; leave it out")
        if name == "ratio" and not 0.0 <= value < 1.0:
            raise UserError(f"ratio: must be a number in [0, 1), got {value}")
        if name != "ratio" and not (1 if name == "context" else 0) <= value <= MAX_TOKENS:
            raise UserError(f"{name}: must be a number of tokens, got {value}")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
