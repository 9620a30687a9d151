"""One process at a time holds a file; the others wait for it and say so."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from threading import Thread

import pytest

from baklava.system.lock import try_lock, wait_for_lock


def test_a_second_one_waits_until_the_file_is_closed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = (tmp_path / "lock").open("ab"), (tmp_path / "lock").open("ab")
    assert try_lock(first) is True
    assert try_lock(second) is False
    waiting = Thread(target=wait_for_lock, args=(second, "waiting for the first"))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    first.close()
    waiting.join()
    assert capfd.readouterr().err == "waiting for the first\n"
    with (tmp_path / "lock").open("ab") as third:
        assert try_lock(third) is False
    second.close()


def test_a_free_file_is_locked_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "lock").open("ab") as file, (tmp_path / "lock").open("ab") as other:
        wait_for_lock(file, "waiting")
        assert try_lock(other) is False
    assert capfd.readouterr().err == ""


def test_a_file_system_without_locks_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, flags: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / "lock").open("ab") as file:
        assert try_lock(file) is None
        wait_for_lock(file, "waiting")
