"""`baklava run` calls Snakemake with settings that arrive as they were typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from snakemake.cli import get_argument_parser, parse_config

from baklava.cli import main
from baklava.experiment.snakemake_config import overrides_of

ODD = [
    "experiment=smoke",
    "name=2024_11_25",
    "tasks.mine.data='it''s #1 \"x\"'",
    'results="/a b/$HOME"',
    "ratios=[0, 0.5]",
]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, repository: Path):
    """`called(*arguments)`: what `baklava run` with these arguments becomes."""
    monkeypatch.chdir(repository)
    calls: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, arguments: calls.append(arguments))

    def run(*arguments: str) -> list[str]:
        assert main(["run", *arguments]) == 0
        command = calls.pop()
        assert command[:3] == [sys.executable, "-m", "snakemake"]
        return command[3:]

    return run


def settings(arguments: list[str]) -> list[str]:
    typed = get_argument_parser().parse_args(arguments).config
    parsed = parse_config(typed)
    return overrides_of(parsed, typed, parsed)


def test_settings_arrive_as_they_were_typed(called) -> None:
    assert settings(called(*ODD)) == ODD
    assert settings(called("name=x y", "experiment=smoke")) == ["experiment=smoke", "name=x y"]
    assert settings(called()) == ["experiment=demo"]


def test_what_comes_after_the_dashes_goes_to_snakemake(called, repository: Path) -> None:
    options = get_argument_parser().parse_args(called(*ODD, "--", "calibrate", "--dry-run"))
    assert (options.targets, options.dryrun) == (["calibrate"], True)
    assert Path(options.snakefile) == repository / "Snakefile"


@pytest.mark.parametrize("option", [["--cores", "2"], ["-c2"], ["--profile", "profiles/slurm"], ["--jobs=3"]])
def test_cores_are_all_unless_an_option_says_what_runs_at_once(called, option: list[str]) -> None:
    assert "all" in called("experiment=smoke")
    assert "all" not in called("experiment=smoke", "--", *option)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["results/demo"], "results/demo: not a setting (KEY=VALUE); options of Snakemake come after --"),
        (["--", "--config", "experiment=demo"], "--config: settings are given as KEY=VALUE before the --"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *arguments]) == 2
    assert capsys.readouterr().err == f"baklava run: error: {said}\n"
