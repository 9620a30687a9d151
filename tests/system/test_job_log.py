"""A job's log holds whole lines; what a user must see reaches the terminal, once."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from baklava.cli import main
from baklava.experiment.stages import STAGES, Stage
from baklava.system import job_log, progress
from baklava.system.job_log import WholeLines, output_to, tell
from baklava.system.progress import Progress, describe_duration


def written(*texts: str) -> str:
    stream = io.StringIO()
    lines = WholeLines(stream)
    for text in texts:
        assert lines.write(text) == len(text)
    return stream.getvalue()


def test_a_line_that_is_drawn_anew_is_written_once() -> None:
    assert written("\rload:  0%", "\rload: 50%", "\rload: 100%  ", "\n", "done\n") == "load: 100%\ndone\n"
    assert written("\r 10%", "\r     \r", "a message\n", "\r 20%", "\n") == "a message\n 20%\n"


def test_what_comes_behind_a_bar_has_a_line_of_its_own() -> None:
    assert written("\r 10%", "error: no\n") == " 10%\nerror: no\n"


def test_lines_come_through_and_escape_codes_do_not() -> None:
    assert written("one ", "line\n\n\x1b[1;31mred\x1b[0m\r\n", "no end") == "one line\n\nred\n"


def test_a_bar_leaves_a_version_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(job_log.time, "monotonic", lambda: clock[0])
    lines = WholeLines(stream := io.StringIO())
    for second in range(8 * 3600):
        clock[0] = float(second)
        lines.write(f"\r{second} s")
    assert 50 < stream.getvalue().count("\n") < 120
    assert "\n10 s\n20 s\n" in "\n" + stream.getvalue()


def test_all_output_goes_to_the_log_and_what_is_told_to_the_terminal_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with output_to(tmp_path / "logs" / "a.log"):
        print("printed")
        os.write(2, b"by a library\n")
        os.system("echo by a child")
        tell("told")
    print("after", file=sys.stderr)
    assert (tmp_path / "logs" / "a.log").read_text().splitlines() == ["printed", "by a library", "by a child", "told"]
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "told\nafter\n")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    path.write_text('{"nonsense": 1}')
    return path


def test_a_mistake_is_in_the_log_and_on_the_terminal(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "a.log"
    assert main(["profile", "--job", str(job), "--log", str(log)]) == 2
    assert capsys.readouterr().err == log.read_text()
    assert log.read_text().count("\n") == 1


def test_of_an_error_the_last_lines_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STAGES, "profile", Stage(f"{__name__}:nowhere", "", ""))
    monkeypatch.setattr("baklava.cli._run_stage", lambda *_: print(*range(100), sep="\n") or 1 / 0)
    assert main(["profile", "--log", str(tmp_path / "a.log")]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == f"{tmp_path / 'a.log'} ends with:"
    assert shown[-1] == "ZeroDivisionError: division by zero"
    assert len(shown) == 1 + job_log.LAST_LINES
    assert shown.count("ZeroDivisionError: division by zero") == 1


def test_a_long_rest_is_said_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "AFTER", 0.0)
    monkeypatch.setattr(progress, "WORTH_SAYING", 0.0)
    with Progress(total=4, desc="grow m", unit="prompt", file=io.StringIO()) as bar:
        for _ in range(4):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["grow m: about 1 min to go (1 of 4 prompts)"]
    with Progress(total=100, desc="just begun", file=io.StringIO()) as bar:
        bar.update(4)
    assert capsys.readouterr().err == ""  # too little to tell
    monkeypatch.setattr(progress, "WORTH_SAYING", 60.0)
    with Progress(total=4, desc="quick", file=io.StringIO()) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_durations_are_minutes_then_hours() -> None:
    assert [describe_duration(seconds) for seconds in (10, 125, 5000, 5400)] == ["1 min", "2 min", "83 min", "1.5 h"]
