"""What a job takes of processor, memory and GPU over time, in a file beside its output."""

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
MAX_ROWS = 500  # beyond it every second row is dropped and the time between two doubled

Row = dict[str, float]


def usage_path(output: Path) -> Path:
    """Where the usage of the job that writes `output` is kept."""
    return output.with_suffix(SUFFIX)


@contextmanager
def record_usage(path: Path) -> Iterator[None]:
    """Record this process for the length of the block; the file is written if the block ends well.

    One row at the start, one at the end, and between them at most one a second: `time` (seconds since 1970),
    `cpu_percent` (of one core, since the row before), `memory_bytes` (resident), and of each GPU that the process may
    see `gpu_<i>_percent` and `gpu_<i>_memory_bytes`, whoever uses it. A file that cannot be written is named on
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
    """The rows of a file, without the values that a device could not tell. Raises `UserError` for a damaged file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable usage file ({error}); remove it, nothing else needs it") from None


class _Recorder(threading.Thread):
    """Takes a row now and then until it is stopped."""

    def __init__(self) -> None:
        super().__init__(name="usage", daemon=True)
        self.rows: list[Row] = []
        self._process = psutil.Process()
        self._gpus = _gpus()
        self._seconds = SECONDS
        self._stopped = threading.Event()
        self._process.cpu_percent()  # counts from here
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


def _gpus() -> list[Callable[[], Row]]:
    """A reader for each NVIDIA GPU that this process may see; none where there is no driver."""
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
            with suppress(nvml.NVMLError):  # a part of a GPU (MIG) does not tell how busy it is
                row["memory_bytes"] = nvml.nvmlDeviceGetMemoryInfo(handle).used
                row["percent"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
            return row

        return read

    return [reader(handle) for handle in handles]


def _handle(name: str) -> object:
    """Of a device as `CUDA_VISIBLE_DEVICES` names it: by number or by identifier."""
    import pynvml as nvml

    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)


def _write(path: Path, rows: list[Row]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
