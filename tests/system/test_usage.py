from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from baklava.errors import UserError
from baklava.system import usage
from baklava.system.usage import read_usage, record_usage, usage_path


class FakeNvml(SimpleNamespace):
    """Two GPUs; the second cannot say how busy it is."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        if index > 1:
            raise self.NVMLError
        return index

    def nvmlDeviceGetHandleByUUID(self, name):
        return {"GPU-one": 1}[name]

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=1000 + handle)

    def nvmlDeviceGetUtilizationRates(self, handle):
        if handle == 1:
            raise self.NVMLError
        return SimpleNamespace(gpu=75)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())


def record(path: Path) -> list[dict[str, float]]:
    with record_usage(path):
        pass
    return read_usage(path)


def test_a_job_leaves_its_memory_and_processor_time(tmp_path: Path):
    path = usage_path(tmp_path / "records" / "vt.parquet")
    assert path == tmp_path / "records" / "vt.usage.csv"
    first, last = record(path)
    assert 0 <= last["time"] - first["time"] < 60
    assert 0 < last["memory_bytes"] < psutil.virtual_memory().total
    assert last["cpu_percent"] >= 0


def test_a_job_that_fails_leaves_nothing(tmp_path: Path):
    with pytest.raises(UserError), record_usage(tmp_path / "new" / "vt.usage.csv"):
        raise UserError("no such model")
    assert list(tmp_path.iterdir()) == []


def test_each_gpu_has_its_columns(gpus: None, tmp_path: Path):
    last = record(tmp_path / "vt.usage.csv")[-1]
    assert {name: value for name, value in last.items() if name.startswith("gpu")} == {
        "gpu_0_memory_bytes": 1000.0,
        "gpu_0_percent": 75.0,
        "gpu_1_memory_bytes": 1001.0,
    }


@pytest.mark.parametrize(
    ("visible", "memory"), [("1", [1001]), ("GPU-one", [1001]), ("1,0", [1001, 1000]), ("", []), ("-1", []), ("7", [])]
)
def test_only_gpus_that_the_job_may_see_count(gpus: None, monkeypatch, tmp_path: Path, visible: str, memory: list[int]):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    last = record(tmp_path / "vt.usage.csv")[-1]
    assert [value for name, value in last.items() if name.startswith("gpu") and "memory" in name] == memory


class Ticks:
    """Waits that end at once, 1,000 of them."""

    left = 1000

    def wait(self, seconds: float) -> bool:
        self.left -= 1
        return self.left < 0


def test_long_jobs_keep_few_rows_from_start_to_end(monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(usage, "MAX_ROWS", 10)
    monkeypatch.setattr(usage, "time", SimpleNamespace(time=lambda: float(next(clock))))
    recorder = usage._Recorder()
    recorder._stopped = Ticks()
    recorder.run()
    times = [row["time"] for row in recorder.rows]
    assert len(times) <= 10
    assert times[0] == 0
    assert times[-1] > 900
    assert times == sorted(times)


def test_usage_that_cannot_be_written_does_not_fail_the_job(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    with record_usage(tmp_path / "file" / "vt.usage.csv"):
        pass
    assert "is not kept" in capsys.readouterr().err
