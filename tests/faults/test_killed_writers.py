"""A process that is killed while it writes leaves neither half a file nor, once it is written again, a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from baklava.system.append_log import AppendLog
from baklava.system.files import atomic

WRITER = """
import sys
from pathlib import Path
from baklava.system.files import atomic

with atomic(Path(sys.argv[1])) as unfinished:
    unfinished.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
    unfinished.write_text("of another process")
"""

HOLDER = """
import sys
from pathlib import Path
from baklava.system.append_log import AppendLog

store = AppendLog(Path(sys.argv[1]), alone=True)
store.add({"a": 1})
print("writing", flush=True)
sys.stdin.read()
store.add({"b": 2})
"""


@pytest.fixture
def writer(tmp_path: Path):
    """Another process in the middle of writing `result.txt`."""
    with started(WRITER, tmp_path / "result.txt") as process:
        yield process


def started(script: str, path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate("")
    assert process.returncode == 0


def test_what_a_killed_process_had_begun_is_removed_by_the_next(tmp_path: Path, writer) -> None:
    path = tmp_path / "result.txt"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".result.txt.") and left.name.endswith(".unfinished")
    with atomic(path) as unfinished:
        unfinished.write_text("whole")
    assert (list(tmp_path.iterdir()), path.read_text()) == ([path], "whole")


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path, writer) -> None:
    path = tmp_path / "result.txt"
    with atomic(path) as unfinished:
        unfinished.write_text("whole")
    assert path.read_text() == "whole"
    finish(writer)  # its rename needs the file
    assert (list(tmp_path.iterdir()), path.read_text()) == ([path], "of another process")


def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / name for name in (".other.txt.1.unfinished", ".result.txt", "result.txt.unfinished")]
    for other in others:
        other.touch()
    with atomic(tmp_path / "result.txt") as unfinished:
        unfinished.write_text("whole")
    assert all(other.exists() for other in others)


def test_a_store_in_use_is_waited_for_and_then_holds_what_the_other_process_added(tmp_path: Path) -> None:
    path = tmp_path / "s.lines"
    with started(HOLDER, path) as first:
        script = HOLDER.replace('store.add({"a": 1})', 'assert store["b"] == 2')
        second = subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert second.stderr is not None
        assert second.stderr.readline() == f"{path}: waiting while another process is at work on it\n"
        finish(first)
        finish(second)


def test_a_killed_process_holds_no_store(tmp_path: Path) -> None:
    path = tmp_path / "s.lines"
    with started(HOLDER, path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert AppendLog(path, alone=True)["a"] == 1
