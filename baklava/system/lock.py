"""The lock that every part of the package uses: the system releases it however the process that holds it ends."""

from __future__ import annotations

import fcntl
import sys
from typing import BinaryIO


def try_lock(file: int | BinaryIO) -> bool | None:
    """Lock an open file until it is closed. False: another process holds it. None: the file system has no locks."""
    return _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait_for_lock(file: int | BinaryIO, message: str) -> None:
    """Lock an open file until it is closed; `message` goes to standard error while another process holds it.

    Does nothing where the file system has no locks.
    """
    if try_lock(file) is False:
        print(message, file=sys.stderr, flush=True)
        _lock(file, fcntl.LOCK_EX)


def _lock(file: int | BinaryIO, flags: int) -> bool | None:
    try:
        fcntl.flock(file, flags)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
