"""GPUs: two jobs never hold one unless asked, and a job that dies gives its own back. The devices are invented."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from baklava.cli import main
from baklava.errors import UserError
from baklava.system.devices import list_visible_devices, reserve_gpu

HOLD = """
import os, sys
from baklava.system.devices import reserve_gpu
with reserve_gpu(sys.argv[1], int(sys.argv[2])) as gpu:
    print(gpu, os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "BAKLAVA_JOBS_PER_GPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7f/1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # locks of this test alone
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def holders() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for one in started:
        one.kill()
        one.communicate()


def hold(holders: list[subprocess.Popen[str]], device: str = "auto", n: int = 1) -> subprocess.Popen[str]:
    """Another process that takes GPUs and holds them."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, device, str(n)]
    holders.append(subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe))
    return holders[-1]


def line(holder: subprocess.Popen[str]) -> str:
    assert holder.stdout is not None
    return holder.stdout.readline().strip()


def test_every_process_has_a_gpu_of_its_own_and_a_killed_one_gives_it_back(
    holders: list[subprocess.Popen[str]],
) -> None:
    first, second = hold(holders), hold(holders)
    assert sorted([line(first), line(second)]) == ["4 4", "GPU-7f/1 GPU-7f/1"]
    third = hold(holders)
    assert third.stderr is not None
    assert "waiting for a free GPU: 4, GPU-7f/1 taken" in third.stderr.readline()
    first.send_signal(signal.SIGKILL)
    first.wait()
    freed = line(third)
    assert freed in ("4 4", "GPU-7f/1 GPU-7f/1")
    second.kill()
    with reserve_gpu("auto") as gpu:
        assert gpu is not None
        assert gpu not in freed


def test_a_named_device_is_waited_for_and_keeps_its_number(holders: list[subprocess.Popen[str]]) -> None:
    first = hold(holders, "cuda:1")
    assert line(first) == "GPU-7f/1 4,GPU-7f/1"
    second = hold(holders, "cuda:1")
    assert second.stderr is not None
    assert "waiting for a free GPU: GPU-7f/1 taken" in second.stderr.readline()
    with reserve_gpu("cuda") as gpu:
        assert gpu == "4"


def test_sharing_is_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAKLAVA_JOBS_PER_GPU", "2")
    with ExitStack() as held:
        taken = []
        for _ in range(4):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
            taken.append(held.enter_context(reserve_gpu("auto")))
    assert taken == ["0", "1", "0", "1"]


def test_a_large_model_holds_several_and_none_while_it_waits(holders: list[subprocess.Popen[str]]) -> None:
    first = hold(holders)
    assert line(first) == "4 4"
    large = hold(holders, n=2)
    assert large.stderr is not None
    assert "waiting for a free GPU" in large.stderr.readline()
    first.kill()
    assert line(large) == "4,GPU-7f/1 4,GPU-7f/1"
    with pytest.raises(UserError, match="gpus: 3 for a model, and this machine shows 2"), reserve_gpu("auto", 3):
        pass


def test_only_the_own_gpu_is_visible_and_only_for_the_block() -> None:
    with reserve_gpu("auto") as gpu:
        assert list_visible_devices() == [gpu] == ["4"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,GPU-7f/1"


@pytest.mark.parametrize("nothing", ["", "-1", "NoDevFiles"])
def test_without_a_gpu_or_on_the_cpu_none_is_held(nothing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with reserve_gpu("cpu") as gpu:
        assert gpu is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
    assert list_visible_devices() == []
    with reserve_gpu("auto") as gpu:
        assert gpu is None


def test_devices_are_those_that_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_visible_devices() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H (UUID: GPU-a)'\necho '  MIG 1g (UUID: MIG-b)'\necho 'GPU 1: H'\n")
    tool.chmod(0o755)
    assert list_visible_devices() == ["0", "1"]


def test_each_slurm_job_has_its_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM shows different devices under the same number to two jobs of one machine."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with ExitStack() as held:
        for number in ("17", "18"):
            monkeypatch.setenv("SLURM_JOB_ID", number)
            assert held.enter_context(reserve_gpu("auto")) == "0"


@pytest.mark.parametrize("given", ["0", "-1", "two", ""])
def test_a_wrong_number_of_jobs_per_gpu_is_one_line(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAKLAVA_JOBS_PER_GPU", given)
    with pytest.raises(UserError, match="expected how many jobs may share a GPU"), reserve_gpu("auto"):
        pass


def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match="cuda:2: this machine shows 2 GPUs"), reserve_gpu("cuda:2"):
        pass


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"baklava-gpus-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="belongs to somebody else"), reserve_gpu("auto"):
        pass


def test_one_command_computes_on_one_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """CUDA is initialised once per process."""
    assert main(["profile", "model=[tiny-llama,tiny-qwen2]", "models.tiny-llama.device=cuda:1"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert "run it for one model at a time, model=NAME" in error
