"""The measurements file: memory and speed of each cell. It reads without torch, unlike `speed`, which measures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa

from baklava.system.parquet import read_parquet

SCHEMA = 1

COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("allocator", pa.string()),
        ("eviction", pa.string()),
        ("ratio", pa.float64()),
        ("device", pa.string()),
        ("context", pa.int64()),
        ("batch", pa.int64()),
        ("prefill_seconds", pa.float64()),  # to read and compress the context
        ("first_token_seconds", pa.float64()),  # until the first new token is known
        ("tokens_per_second", pa.float64()),  # of all rows together, after the first token
        ("peak_bytes", pa.float64()),  # device memory above the weights; NaN on a CPU
        ("kv_bytes", pa.int64()),  # keys and values held after the last token
    ]
)


def read_measurements(path: Path) -> pd.DataFrame:
    """One row per cell, the full cache among them. Raises `UserError` for a missing, broken or newer file."""
    return read_parquet(path, COLUMNS, schema=SCHEMA, what="measurements", hint="`baklava measure`").to_pandas()
