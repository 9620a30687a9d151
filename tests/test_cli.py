"""The command line: light to start, and a user's mistake is one line."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import baklava
from baklava.cli import main
from baklava.experiment import jobs
from baklava.experiment.compose import compose
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.stages import STAGES

COMMANDS = (*STAGES, "run", "plan", "table", "train-reference")
HEAVY = (
    *("torch", "transformers", "tokenizers", "datasets", "mlflow", "snakemake"),
    *("plotly", "jinja2"),
    *("pandas", "numpy", "scipy", "matplotlib", "pyarrow", "hydra", "omegaconf", "pydantic"),
)


def heavy_modules_after(code: str) -> list[str]:
    """Which of the heavy modules a fresh Python has imported after running `code`."""
    script = f"import sys\n{code}\nprint([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stderr)


class TestStartUp:
    def test_importing_the_package_is_light(self) -> None:
        assert heavy_modules_after("import baklava") == []

    def test_help_is_light(self) -> None:
        code = "from baklava.cli import main\ntry: main(['--help'])\nexcept SystemExit as done: assert done.code == 0"
        assert heavy_modules_after(code) == []

    def test_help_of_a_command_is_light(self) -> None:
        code = "from baklava.cli import main\ntry: main(['profile', '--help'])\nexcept SystemExit: pass"
        assert heavy_modules_after(code) == []

    def test_checking_the_configuration_needs_no_model_library(self) -> None:
        """The workflow does so before its first job."""
        used = heavy_modules_after("from baklava.experiment.compose import compose\ncompose()")
        assert set(used) <= {"numpy", "pydantic", "hydra", "omegaconf"}

    def test_public_names_are_there_when_asked_for(self) -> None:
        import baklava

        assert baklava.Budgets.__module__ == "baklava.budgets.budgets"
        assert baklava.reference_model_path.__module__ == "baklava.models"
        with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
            _ = baklava.Nothing


class TestHelp:
    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["--version"])
        assert capsys.readouterr().out == f"baklava {baklava.__version__}\n"

    def test_lists_every_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as done:
            main(["--help"])
        assert done.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        assert all(any(line.split()[:1] == [command] for line in lines) for command in COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0
        shown = capsys.readouterr().out
        assert f"usage: baklava {command}" in shown
        assert "KEY=VALUE" in shown

    @pytest.mark.parametrize("arguments", [[], ["nonsense"], ["profile", "--nonsense"]])
    def test_unknown_commands_and_options_exit_with_2(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == 2
        assert "usage: baklava" in capsys.readouterr().err


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a command that must fail."""
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith(f"baklava {arguments[0]}: error: ")
    return shown.err


class TestMistakes:
    @pytest.mark.parametrize("stage", STAGES)
    def test_bad_override_is_one_line(self, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert "ratios.0" in complaint([stage, "ratios=[1.0]"], capsys)

    def test_a_process_ends_with_status_2_and_no_traceback(self) -> None:
        command = [sys.executable, "-m", "baklava", "profile", "nonsense=1"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "nonsense" in done.stderr

    @pytest.mark.parametrize(
        ("job", "expected"),
        [
            ("", "not JSON"),
            ("{", "not JSON"),
            ("[" * 100_000, "not JSON"),
            ("9" * 5000, "not JSON"),
            ("3", "(top level)"),
            ("null", "(top level)"),
            ("[]", "(top level)"),
            ("{}", "model: Field required; and 3 more"),
            ('{"nonsense": 1}', "and 4 more"),
        ],
    )
    def test_bad_job_is_one_line(self, job: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
        said = complaint(["profile", "--job", job], capsys)
        assert "--job: " in said
        assert expected in said

    def test_bad_value_in_a_job_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        job = json.loads(
            jobs.ProfileJob.of(compose(), ExperimentPaths(Path("results"), "e"), "tiny-llama").model_dump_json()
        )
        job["model"]["dtype"] = "int8"
        said = complaint(["profile", "--job", json.dumps(job)], capsys)
        assert "--job: model.dtype: " in said
        assert "'int8'" in said

    def test_job_and_overrides_exclude_each_other(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "takes no override such as 'a=1'" in complaint(["profile", "a=1", "--job", "{}"], capsys)

    @pytest.mark.parametrize("stage", ["profile", "allocate", "summarize"])
    def test_missing_input_is_named(self, stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert str(tmp_path) in complaint([stage, "experiment=smoke", f"results={tmp_path}"], capsys)

    def test_training_needs_a_known_recipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "model=tiny-llama" in complaint(["train-reference"], capsys)
        assert "known: tiny-llama, tiny-llama-long, tiny-qwen2" in complaint(
            ["train-reference", "model=nothing"], capsys
        )
        assert "save_every" in complaint(["train-reference", "model=tiny-llama", "save_every=x"], capsys)

    def test_interruption_ends_with_130(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)

        def interrupted(job: Any) -> None:
            raise KeyboardInterrupt

        install(monkeypatch, "profile", interrupted)
        assert main(["profile"]) == 130
        assert capsys.readouterr().err == "baklava profile: interrupted\n"


def install(monkeypatch: pytest.MonkeyPatch, stage: str, run: Any) -> None:
    """Let `stage` call `run`."""
    module = ModuleType("stand_in_stage")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stand_in_stage", module)
    monkeypatch.setitem(STAGES, stage, replace(STAGES[stage], run="stand_in_stage:run"))


class TestStages:
    @pytest.mark.parametrize("stage", STAGES)
    def test_overrides_and_jobs_run_the_same_work(
        self, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        config = compose(["experiment=demo"])
        expected = list(STAGES[stage].job_class.all(config, ExperimentPaths(config.results, config.name)))
        done: list[Any] = []
        install(monkeypatch, stage, done.append)
        assert main([stage, "experiment=demo"]) == 0
        assert done == expected
        done.clear()
        for job in expected:
            assert main([stage, "--job", job.model_dump_json()]) == 0
        assert done == expected

    @pytest.mark.parametrize("stage", STAGES)
    def test_names_a_function_that_is_there(self, stage: str) -> None:
        """Read, not imported: some modules take seconds to load."""
        module, name = STAGES[stage].run.split(":")
        spec = find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        bound = set()
        for node in ast.parse(Path(spec.origin).read_text()).body:
            if isinstance(node, ast.FunctionDef):
                bound.add(node.name)
            elif isinstance(node, ast.ImportFrom):
                bound |= {alias.asname or alias.name for alias in node.names}
        assert name in bound
