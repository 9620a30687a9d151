"""A run as MLflow should hold it, in plain values; this module does not know MLflow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class MetricPoint(NamedTuple):
    """One value of a metric over steps; `time` is in seconds since 1970, None for the time of logging."""

    step: int
    value: float
    time: float | None = None


@dataclass(frozen=True)
class Dataset:
    """What a run was computed from.

    `columns` are (name, type as MLflow names it); the digest has at most 36 characters.
    """

    name: str
    digest: str
    context: str  # its use: calibration or evaluation
    source: str
    n_rows: int
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RunSpec:
    """What a run should hold. `key` identifies the run, the fingerprint its content.

    `curves` are metrics over steps; `artifacts` are pairs of folder and file; `table` is the name and the text of a
    JSON file that the UI shows as a table.
    """

    key: str
    name: str
    parent: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, tuple[MetricPoint, ...]] = field(default_factory=dict)
    datasets: tuple[Dataset, ...] = ()
    artifacts: tuple[tuple[str, Path], ...] = ()
    table: tuple[str, str] | None = None

    @property
    def fingerprint(self) -> str:
        files = {f"{folder}/{path.name}": _digest(path.read_bytes()) for folder, path in self.artifacts}
        values: list[Any] = [self.name, dict(self.tags), dict(self.params), dict(self.metrics), dict(self.curves)]
        content = [*values, [asdict(dataset) for dataset in self.datasets], files, self.table]
        return _digest(json.dumps(content, sort_keys=True).encode())


def make_key(*identity: str) -> str:
    """Make a key that is the same for the same run on every machine."""
    return _digest(json.dumps(identity).encode())[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
