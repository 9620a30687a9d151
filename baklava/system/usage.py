"""Records the processor, memory and GPU use of a job over time, in a file beside its output."""

from __future__ import annotations

import csv
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from baklava.errors import UserError
from baklava.system.files import atomic

SUFFIX = ".usage.csv"
SECONDS = 1.0  # between two rows, at first
MAX_ROWS = 500  # beyond it, every second row is dropped and the time between two rows doubles

Row = dict[str, float]


def usage_path(output: Path) -> Path:
    """The file of the job that writes `output`."""
    return output.with_suffix(SUFFIX)


@contextmanager
def record_usage(path: Path) -> Iterator[None]:
    """Record this process during the block, and write the file if the block succeeds.

    There is a row at the start, one at the end, and at most one a second between them: `time` (seconds since 1970),
    `cpu_percent` (of one core, since the previous row), `memory_bytes` (resident), and for each GPU that the process
    may see `gpu_<i>_percent` and `gpu_<i>_memory_bytes`, whoever uses it. A file that cannot be written is named on
    standard error and does not fail the job.
    """
    recorder = _Recorder()
    recorder.start()
    try:
        yield
    finally:
        recorder.stop()
    try:
        _write(path, recorder.rows)
    except OSError as error:
        print(f"{path}: the job's use of processor and memory is not kept ({error})", file=sys.stderr)


def read_usage(path: Path) -> list[Row]:
    """Read the rows of a file, without the values that a GPU does not report. Raises `UserError` for a damaged file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable usage file ({error}); remove it, nothing else needs it") from None


class _Recorder(threading.Thread):
    """Adds rows at intervals until it is stopped."""

    def __init__(self) -> None:
        super().__init__(name="usage", daemon=True)
        self.rows: list[Row] = []
        self._process = psutil.Process()
        self._gpus = _gpu_readers()
        self._seconds = SECONDS
        self._stopped = threading.Event()
        self._process.cpu_percent()  # the next call counts from here
        self._add()

    def run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._add()
            if len(self.rows) > MAX_ROWS:
                del self.rows[1::2]
                self._seconds *= 2

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        self._add()

    def _add(self) -> None:
        row = {"time": round(time.time(), 2), "cpu_percent": self._process.cpu_percent()}
        row["memory_bytes"] = self._process.memory_info().rss
        for index, read in enumerate(self._gpus):
            row |= {f"gpu_{index}_{name}": value for name, value in read().items()}
        self.rows.append(row)


def _gpu_readers() -> list[Callable[[], Row]]:
    """Make a reader for each NVIDIA GPU that this process may see; none without a driver."""
    import pynvml as nvml

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        nvml.nvmlInit()
        names = [str(i) for i in range(nvml.nvmlDeviceGetCount())] if visible is None else visible.split(",")
        handles = [_handle(name.strip()) for name in names if name.strip() not in ("", "-1")]
    except nvml.NVMLError:
        return []

    def reader(handle: object) -> Callable[[], Row]:
        def read() -> Row:
            row: Row = {}
            with suppress(nvml.NVMLError):  # a slice of a GPU (MIG) does not report how busy it is
                row["memory_bytes"] = nvml.nvmlDeviceGetMemoryInfo(handle).used
                row["percent"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
            return row

        return read

    return [reader(handle) for handle in handles]


def _handle(name: str) -> object:
    """Get the handle of a GPU by its name in `CUDA_VISIBLE_DEVICES`: a number or an identifier."""
    import pynvml as nvml

    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)


def _write(path: Path, rows: list[Row]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
