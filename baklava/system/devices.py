"""Reserves a GPU for a job, so that no two of our jobs compute on the same one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from baklava.errors import UserError
from baklava.system.lock import try_lock

VISIBLE = "CUDA_VISIBLE_DEVICES"
# How many jobs may share a GPU; the workflow sets it if `--resources gpu=N` asks for more GPUs than there are.
JOBS_PER_GPU = "BAKLAVA_JOBS_PER_GPU"
SECONDS_BETWEEN_TRIES = 1.0


def list_visible_devices() -> list[str]:
    """List the CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` names them.

    It does not ask torch, whose import takes seconds.
    """
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        devices = [device.strip() for device in visible.split(",")]
        return [device for device in devices if device not in ("", "-1", "NoDevFiles")]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listing.stdout.splitlines()))]


@contextmanager
def reserve_gpu(device: str, n: int = 1) -> Iterator[str | None]:
    """Reserve `n` GPUs for the block and hide all others from this process; yields their names, with commas.

    `device` is the setting of a model: `auto` and `cuda` take the first free GPUs and wait until there are `n`;
    `cuda:1` waits for that GPU; `cpu` takes none, and neither does `auto` on a machine without GPUs. Call it before
    CUDA is initialised. A reservation is a lock of the operating system, which releases it however the process ends.

    Raises `UserError` for a GPU that does not exist.
    """
    devices = list_visible_devices()
    if device == "cpu" or not devices:
        yield None
        return
    candidates = devices
    if device.startswith("cuda:"):
        index = int(device.removeprefix("cuda:"))
        if index >= len(devices):
            raise UserError(f"device {device}: this machine shows {len(devices)} GPUs, numbered from 0")
        candidates = [devices[index]]
    if n > len(candidates):
        raise UserError(f"gpus: {n} for a model, and this machine shows {len(devices)}; set models.NAME.gpus")
    with ExitStack() as stack:
        name = ",".join(_lock_free(candidates, n, stack))
        if candidates == devices:
            previous = os.environ.get(VISIBLE)
            os.environ[VISIBLE] = name
            stack.callback(_restore_visible, previous)
        yield name


def _lock_free(devices: list[str], n: int, stack: ExitStack) -> list[str]:
    """Lock a slot on each of `n` GPUs until `stack` closes; GPUs that nobody uses come before those to be shared.

    Where there are not `n`, none is held meanwhile, so that no two jobs wait for each other.
    """
    folder, told = _lock_folder(), False
    while True:
        with ExitStack() as tried:
            locked: list[str] = []
            for slot in range(_jobs_per_gpu()):
                for device in devices:
                    if len(locked) < n and device not in locked and _try_slot(folder, device, slot, tried):
                        locked.append(device)
            if len(locked) == n:
                stack.push(tried.pop_all())
                return locked
        if not told:
            print(f"waiting for a free GPU: {', '.join(devices)} taken ({folder})", file=sys.stderr, flush=True)
            told = True
        time.sleep(SECONDS_BETWEEN_TRIES)


def _try_slot(folder: Path, device: str, slot: int, stack: ExitStack) -> bool:
    """Lock a slot on a GPU until `stack` closes, if it is free."""
    file = (folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', device)}.{slot}.lock").open("ab")
    if try_lock(file) is not False:
        stack.callback(file.close)
        return True
    file.close()
    return False


def _jobs_per_gpu() -> int:
    value = os.environ.get(JOBS_PER_GPU, "1")
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"{JOBS_PER_GPU}={value}: expected how many jobs may share a GPU, 1 or more")
    return int(value)


def _lock_folder() -> Path:
    """Make the folder of this user's locks on this machine.

    Each SLURM job step has a folder of its own, because SLURM numbers the GPUs of each step from 0.
    """
    step = "-".join(os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_STEP_ID") if name in os.environ)
    folder = Path(tempfile.gettempdir()) / "-".join(filter(None, ["baklava-gpus", str(os.getuid()), step]))
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to somebody else, so GPUs cannot be locked there; set TMPDIR to your own")
    return folder


def _restore_visible(previous: str | None) -> None:
    if previous is None:
        os.environ.pop(VISIBLE, None)
    else:
        os.environ[VISIBLE] = previous
