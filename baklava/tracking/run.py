"""A run as MLflow should hold it, in plain values: nothing here knows MLflow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class MetricPoint(NamedTuple):
    """One value of a metric that has several; `time` in seconds since 1970, None: when it is logged."""

    step: int
    value: float
    time: float | None = None


@dataclass(frozen=True)
class Dataset:
    """What a run was computed from. `columns` are (name, MLflow's name of the type); the digest is at most 36 long."""

    name: str
    digest: str
    context: str  # what it served for: calibration, evaluation
    source: str
    n_rows: int
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Run:
    """A run as it should be. `key` says which run it is, the fingerprint whether its content is the same.

    `curves` are metrics over steps; `artifacts` are (folder, file); `table` is a table of rows that the UI shows, as
    the text of a JSON file of that name.
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
        content = [*values, [asdict(one) for one in self.datasets], files, self.table]
        return _digest(json.dumps(content, sort_keys=True).encode())


def key_of(*identity: str) -> str:
    """The same for the same run at every time and place."""
    return _digest(json.dumps(identity).encode())[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
