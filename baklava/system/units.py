"""Units of memory, the binary ones everywhere: KiB, MiB, GiB."""

from __future__ import annotations

UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("bytes", 1))


def choose_unit(n_bytes: float) -> tuple[str, int]:
    """The largest unit that `n_bytes` fill, and its size in bytes."""
    return next(((name, size) for name, size in UNITS if n_bytes >= size), UNITS[-1])


def format_size(n_bytes: float) -> str:
    """A size in its unit, as in 1.50 GiB."""
    unit, size = choose_unit(n_bytes)
    return f"{n_bytes / size:.2f} {unit}"
