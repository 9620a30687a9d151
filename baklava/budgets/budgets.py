"""Budgets: how many entries each KV cache may keep, as shares of a context of any length."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from baklava.budgets.bits import Bits, EntrySize, entries_within, is_packed, label_of, parse_bits
from baklava.errors import UserError
from baklava.system.files import read_json, write_json
from baklava.system.hub import download_folder, upload_folder

SCHEMA = 1
SCHEMA_WITH_BITS = 2  # of files in which a KV cache is quantised; older versions cannot use these
TOLERANCE = 1e-6

# Contexts of at most so many tokens are kept whole unless asked otherwise. Shares are searched for long prompts, and a
# fraction of a short one is too little to answer from; see benchmarks/short_contexts.py.
COMPRESS_ABOVE = 256

# Tokens after the context are added, or overwrite the least important entries, so that no KV cache exceeds its budget.
Decoding = Literal["grow", "fixed"]

# The keys of a budgets file and the types of their values.
TYPES: dict[str, tuple[type, ...]] = {
    "shares": (list,),
    "ratio": (float, int),
    "model": (str,),
    "allocator": (str,),
    "parameters": (dict,),
    "provenance": (dict,),
    "group": (int,),
    "page": (int,),
    "bits": (int, list),
}


@dataclass(frozen=True, eq=False)
class Budgets:
    """One share per KV cache, `[n_layers, n_kv_heads]`, each in [0, 1]; their mean is `1 - ratio`.

    With `bits` `[n_layers, n_kv_heads, 2]`, of keys and values, `ratio` is the fraction of *bytes* that is removed:
    shares count with the bytes of an entry, and may all be 1 where that takes less than the total.

    `model`, `allocator`, `parameters` and `provenance` say where the shares come from; nothing computes with them.
    Where storage asks for it, `group` neighbouring KV heads of a layer always keep equally many entries, and every KV
    cache whole blocks of `page` entries.
    """

    shares: NDArray[np.float64]
    ratio: float
    model: str = ""
    allocator: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    group: int = 1
    page: int = 1
    bits: Bits | None = None

    def __post_init__(self) -> None:
        shares = self.shares
        if not (isinstance(self.ratio, float) and 0.0 <= self.ratio < 1.0):
            raise UserError(f"budgets: ratio must be a number in [0, 1), got {self.ratio!r}")
        if shares.ndim != 2 or shares.size == 0:
            raise UserError(f"budgets: shares must be [n_layers, n_kv_heads], got shape {list(shares.shape)}")
        if not (np.isfinite(shares).all() and (shares >= 0).all() and (shares <= 1).all()):
            raise UserError("budgets: every share must be a number in [0, 1]")
        if self.bits is not None:
            bits = parse_bits(self.bits, self.shape)
            object.__setattr__(self, "bits", bits if is_packed(bits).any() else None)
        self._check_total()
        if self.page < 1 or self.group < 1 or shares.shape[1] % self.group:
            raise UserError(
                f"budgets: group must divide the {shares.shape[1]} KV heads of a layer, and page be at least 1; got "
                f"{self.group} and {self.page}"
            )
        if np.ptp(shares.reshape(-1, self.group), axis=1).max() > TOLERANCE:
            raise UserError(f"budgets: the shares of each group of {self.group} KV heads must be equal")
        shares.setflags(write=False)

    def _check_total(self) -> None:
        mean, total = self._mean(), 1.0 - self.ratio
        if self.bits is None:
            if abs(mean - total) > TOLERANCE:
                raise UserError(f"budgets: the mean share must be 1 - ratio = {total:.6f}, got {mean:.6f}")
            return
        if mean > total + TOLERANCE or (mean < total - TOLERANCE and self.shares.min() < 1.0):
            raise UserError(
                f"budgets: shares and bits must take 1 - ratio = {total:.6f} of the bytes, or keep all, got {mean:.6f}"
            )
        if self.page != 1 or self.group != 1:
            raise UserError(
                "budgets: group and page must be 1 where there are bits, whose groups are pages of their own"
            )

    def _mean(self) -> float:
        """The bytes that shares and bits ask for, as a fraction of all."""
        return float((self.shares if self.bits is None else self.shares * EntrySize().relative(self.bits)).mean())

    @classmethod
    def from_shares(cls, shares: ArrayLike, *, ratio: float | None = None, bits: Any = None, **origin: Any) -> Budgets:
        """Make budgets of explicit shares `[n_layers, n_kv_heads]`; the ratio follows from them unless given.

        `bits` are as for a `BudgetedCache`.
        """
        try:
            array = np.asarray(shares)
        except (TypeError, ValueError, OverflowError):  # ragged, for example
            array = None
        if array is None or array.dtype.kind not in "iuf":
            raise UserError("budgets: shares must be a rectangular array of numbers")
        array = array.astype(np.float64)
        if ratio is None:
            cost = 1.0 if bits is None else EntrySize().relative(parse_bits(bits, array.shape))
            mean = float((array * cost).mean()) if array.size else math.nan
            ratio = min(max(1.0 - mean, 0.0), math.nextafter(1.0, 0.0)) if math.isfinite(mean) else math.nan
        return cls(array, float(ratio), bits=bits, **origin)

    @classmethod
    def uniform(cls, *, n_layers: int, n_kv_heads: int, ratio: float, bits: Any = None, **origin: Any) -> Budgets:
        """Give every KV cache the same share; with `bits`, as for a `BudgetedCache`, of the bytes."""
        shape = (n_layers, n_kv_heads)
        cost = 1.0 if bits is None else float(EntrySize().relative(parse_bits(bits, shape)).mean())
        shares = np.full(shape, min(1.0, (1.0 - ratio) / cost))
        return cls(shares, float(ratio), bits=bits, **{"allocator": "uniform", **origin})

    def __str__(self) -> str:
        origin = f" by {self.allocator}" * bool(self.allocator) + f" for {self.model}" * bool(self.model)
        low, high = self.shares.min(), self.shares.max()
        n_layers, n_kv_heads = self.shape
        caches = f"{n_layers} x {n_kv_heads} KV caches" + f" in {self.width} bits" * (self.bits is not None)
        return f"budgets{origin}: r = {self.ratio:g}, shares {low:.3g} to {high:.3g} of {caches}"

    @property
    def shape(self) -> tuple[int, int]:
        """(n_layers, n_kv_heads)."""
        return self.shares.shape[0], self.shares.shape[1]

    @property
    def width(self) -> str:
        """Its bits in short: 16, 4, 4/2 (keys and values) or mixed."""
        return label_of(self.bits)

    def constraints(self) -> list[dict[str, int]]:
        """Group and page, by which fingerprints of equal shares differ; empty where they constrain nothing."""
        sizes = {name: size for name, size in (("group", self.group), ("page", self.page)) if size != 1}
        return [sizes] if sizes else []

    def entries(self, n_entries: int, size: EntrySize | None = None) -> NDArray[np.int64]:
        """Turn shares into entries `[n_layers, n_kv_heads]` for a context of `n_entries` tokens.

        The sum is exactly `round((1 - ratio) * n_layers * n_kv_heads * n_entries)`: every cache gets its share rounded
        down, and those with the largest remainders get one entry more (ties: the earlier cache). With a `group` or a
        `page` the same holds for groups in place of caches, and for blocks (of the last, what the context fills).

        With bits the bytes are within `1 - ratio` of those in the model's precision, and less than a group below it,
        for entries of the given size.
        """
        if self.bits is not None:
            size = size or EntrySize()
            total = (1.0 - self.ratio) * self.shares.size * n_entries * size.n_bytes
            counts = entries_within(self.shares.ravel(), self.bits.reshape(-1, 2), n_entries, total, size)
            return counts.reshape(self.shares.shape)
        counts = self._counts(self.shares.ravel()[:: self.group], -(-n_entries // self.page))
        entries = np.minimum(counts * self.page, n_entries)
        return np.repeat(entries, self.group).reshape(self.shares.shape)

    def _counts(self, shares: NDArray[np.float64], n_entries: int) -> NDArray[np.int64]:
        ideal = shares * n_entries
        counts = np.minimum(np.floor(ideal + 1e-9).astype(np.int64), n_entries)
        left = round((1.0 - self.ratio) * shares.size * n_entries) - int(counts.sum())
        remainder = ideal - counts
        order = np.argsort(-remainder, kind="stable")
        step = 1 if left > 0 else -1
        while left:  # more than one round only if shares are at their limits
            for i in order if left > 0 else order[::-1]:
                if left and 0 <= counts[i] + step <= n_entries:
                    counts[i] += step
                    left -= step
        return counts

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, ratio: float, **options: Any) -> Budgets:
        """Load the budgets at a ratio from a folder with `0.7.json` and so on, here or on the Hugging Face hub.

        `options` go to `huggingface_hub.snapshot_download`, for example `revision`. Raises `UserError` where there are
        no budgets at this ratio, and names those that are there.
        """
        found = Path(folder) if Path(folder).is_dir() else download_folder(str(folder), **options)
        path = found / f"{ratio:g}.json"
        if not path.is_file():
            known = sorted(path.stem for path in found.glob("*.json"))
            raise UserError(f"{folder}: no budgets at ratio {ratio:g}; there are {', '.join(known) or 'none at all'}")
        return cls.load(path)

    @staticmethod
    def push_to_hub(folder: Path | str, repo: str, *, private: bool = False) -> str:
        """Upload a folder of budgets with its card (`README.md`) to the Hugging Face hub, for `from_pretrained`.

        Every file is read first. Returns the address of the commit. Raises `UserError` where a file is no budgets file.
        """
        paths = sorted(Path(folder).glob("*.json"))
        if not paths:
            raise UserError(f"{folder}: no budgets files (*.json) to upload")
        for path in paths:
            Budgets.load(path)
        return upload_folder(Path(folder), repo, private=private)

    def save(self, path: Path | str) -> None:
        """Write a small readable JSON file, atomically."""
        write_json(
            Path(path),
            {
                "model": self.model,
                "allocator": self.allocator,
                "ratio": self.ratio,
                "parameters": self.parameters,
                "provenance": self.provenance,
                **{name: size for name, size in (("group", self.group), ("page", self.page)) if size != 1},
                **({} if self.bits is None else {"bits": self.bits.tolist()}),
                "shares": [[round(float(share), 12) for share in row] for row in self.shares],
            },
            schema=SCHEMA if self.bits is None else SCHEMA_WITH_BITS,
        )

    @classmethod
    def load(cls, path: Path | str) -> Budgets:
        """Read a budgets file. Raises `UserError` (a `ValueError`) that names the file and what is wrong."""
        path = Path(path)
        values = read_json(path, schema=(SCHEMA, SCHEMA_WITH_BITS), what="budgets")
        for key in ("shares", "ratio"):
            if key not in values:
                raise UserError(f"{path}: budgets: key {key!r} is missing")
        fields: dict[str, Any] = {}
        for key, types in TYPES.items():
            if key in values:
                if type(values[key]) not in types:
                    known = " or ".join(kind.__name__ for kind in types)
                    raise UserError(f"{path}: budgets: {key} must be {known}, got {type(values[key]).__name__}")
                fields[key] = values[key]
        try:
            return cls.from_shares(**fields)
        except (UserError, OverflowError) as error:  # an integer beyond every float
            raise UserError(f"{path}: {error}") from None
