"""Which GPU a job computes on: one that no other job of ours computes on."""

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
# How many jobs may share a device; the workflow sets it where `--resources gpu=N` asks for more than there are.
JOBS_PER_GPU = "BAKLAVA_JOBS_PER_GPU"
SECONDS_BETWEEN_TRIES = 1.0


def list_visible_devices() -> list[str]:
    """CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` names them; asking torch would cost seconds."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        devices = [device.strip() for device in visible.split(",")]
        return [device for device in devices if device not in ("", "-1", "NoDevFiles")]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listing.stdout.splitlines()))]


@contextmanager
def reserve_gpu(device: str) -> Iterator[str | None]:
    """Hold a GPU for the block and make it the only one that CUDA shows to this process; yields its name.

    `device` is a model's: `auto` and `cuda` take the first that is free, waiting for one where none is; `cuda:1` waits
    for that one; `cpu` takes none, like `auto` on a machine without GPUs. Call it before CUDA is initialised. The locks
    are the operating system's, so they go with the process that holds them, however it ends.

    Raises `UserError` for a device that is not there.
    """
    devices = list_visible_devices()
    if device == "cpu" or not devices:
        yield None
        return
    wanted = devices
    if device.startswith("cuda:"):
        index = int(device.removeprefix("cuda:"))
        if index >= len(devices):
            raise UserError(f"device {device}: this machine shows {len(devices)} GPUs, numbered from 0")
        wanted = [devices[index]]
    with ExitStack() as held:
        name = _first_free(wanted, held)
        if wanted == devices:
            before = os.environ.get(VISIBLE)
            os.environ[VISIBLE] = name
            held.callback(_restore, before)
        yield name


def _first_free(devices: list[str], held: ExitStack) -> str:
    """Lock a place on a device, devices that nobody uses before those that are shared."""
    folder, told = _lock_folder(), False
    places = [(slot, device) for slot in range(_jobs_per_gpu()) for device in devices]
    while True:
        for slot, device in places:
            file = (folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', device)}.{slot}.lock").open("ab")
            if try_lock(file) is not False:
                held.callback(file.close)
                return device
            file.close()
        if not told:
            print(f"waiting for a free GPU: {', '.join(devices)} taken ({folder})", file=sys.stderr, flush=True)
            told = True
        time.sleep(SECONDS_BETWEEN_TRIES)


def _jobs_per_gpu() -> int:
    given = os.environ.get(JOBS_PER_GPU, "1")
    if not given.isdigit() or int(given) < 1:
        raise UserError(f"{JOBS_PER_GPU}={given}: expected how many jobs may share a GPU, 1 or more")
    return int(given)


def _lock_folder() -> Path:
    """This user's, on this machine; of a SLURM job step its own, as SLURM numbers each one's devices from 0."""
    step = "-".join(os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_STEP_ID") if name in os.environ)
    folder = Path(tempfile.gettempdir()) / "-".join(filter(None, ["baklava-gpus", str(os.getuid()), step]))
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to somebody else, so GPUs cannot be locked there; set TMPDIR to your own")
    return folder


def _restore(before: str | None) -> None:
    if before is None:
        os.environ.pop(VISIBLE, None)
    else:
        os.environ[VISIBLE] = before
