"""A results folder belongs to one experiment, whose settings may change; another of its name is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from baklava.cli import main
from baklava.errors import UserError
from baklava.experiment.compose import compose
from baklava.experiment.ownership import check_results, claim_results, describe_replaced
from baklava.experiment.schema import ExperimentConfig

SMOKE, DEMO = ["experiment=smoke"], ["experiment=demo"]


def experiment(folder: Path, *overrides: str) -> ExperimentConfig:
    return compose([*SMOKE, f"results={folder}", *overrides])


def claimed(folder: Path) -> Path:
    claim_results(experiment(folder), SMOKE)
    return folder / "smoke" / "experiment.json"


def test_settings_of_the_same_experiment_may_change(tmp_path: Path) -> None:
    path = claimed(tmp_path)
    changed = experiment(tmp_path, "evaluate.n_samples=9")
    check_results(changed, [*SMOKE, "evaluate.n_samples=9"])
    claim_results(changed, SMOKE)
    assert json.loads(path.read_text())["settings"]["evaluate"]["n_samples"] == 9


def test_another_experiment_of_the_name_is_refused(tmp_path: Path) -> None:
    claimed(tmp_path)
    other = experiment(tmp_path, "evaluate.n_samples=9")
    with pytest.raises(UserError, match=r"experiment=smoke with evaluate\.n_samples = 4, and experiment=demo has 9"):
        check_results(other, DEMO)
    with pytest.raises(UserError, match=r"and the settings of config\.yaml has 9"):
        check_results(other, [])
    with pytest.raises(UserError, match=r"models\.tiny-llama = .*'tiny-llama'.*, and experiment=demo has None"):
        check_results(experiment(tmp_path, "model=tiny-qwen2"), DEMO)


def test_another_experiment_that_is_the_same_is_welcome(tmp_path: Path) -> None:
    claimed(tmp_path)
    check_results(experiment(tmp_path, "tracking=none"), DEMO)


def test_the_last_experiment_given_counts(tmp_path: Path) -> None:
    claimed(tmp_path)
    check_results(experiment(tmp_path, "evaluate.n_samples=9"), [*DEMO, *SMOKE])


def test_an_unchanged_claim_writes_nothing(tmp_path: Path) -> None:
    path = claimed(tmp_path)
    os.utime(path, (1, 1))
    claimed(tmp_path)
    assert path.stat().st_mtime == 1


def test_a_folder_is_free_once_the_file_is_gone(tmp_path: Path) -> None:
    claimed(tmp_path).unlink()
    check_results(experiment(tmp_path, "evaluate.n_samples=9"), DEMO)


def test_a_damaged_claim_is_named(tmp_path: Path) -> None:
    path = claimed(tmp_path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"smoke/experiment\.json: not a readable experiment file"):
        check_results(experiment(tmp_path), SMOKE)


class TestWhatARunReplaces:
    def replaced(self, folder: Path, *overrides: str) -> str | None:
        path = claimed(folder)
        path.with_name("summary.parquet").touch()
        return describe_replaced(experiment(folder, *overrides))

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("model=tiny-qwen2", "models.tiny-llama = tiny-llama, now none"),
            ("task=vt", "tasks.niah_single_1 = niah_single_1, now none"),
            ("evaluate.length=2048", "evaluate.length = 1024, now 2048"),
            ("evaluate.n_samples=3", "evaluate.n_samples = 4, now 3"),
            ("ratios=[0,0.5]", "ratios = [0.0, 0.5, 0.8], now [0.0, 0.5]"),
        ],
    )
    def test_it_says_which_results_of_other_settings_are_lost(self, tmp_path: Path, override: str, said: str) -> None:
        assert self.replaced(tmp_path, override) == (
            f"{tmp_path}/smoke holds results with {said}: this run replaces its summary, figures and page; give it a "
            "name of its own (name=...) to keep both"
        )

    @pytest.mark.parametrize(
        "override",
        [
            "evaluate.n_samples=9",
            "ratios=[0,0.5,0.8,0.9]",
            "task=[niah_single_1,vt,niah_multikey_1]",
            "evaluate.shards=4",
            "search.memory_gib=1",
            "measure.enabled=true",
            "tracking=none",
        ],
    )
    def test_what_only_adds_is_silent(self, tmp_path: Path, override: str) -> None:
        assert self.replaced(tmp_path, override) is None

    def test_without_results_there_is_nothing_to_replace(self, tmp_path: Path) -> None:
        claimed(tmp_path)
        assert describe_replaced(experiment(tmp_path, "model=tiny-qwen2")) is None

    def test_the_command_says_so(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        claimed(tmp_path).with_name("summary.parquet").touch()
        settings = ["experiment=smoke", f"results={tmp_path}", "tracking=none", "evaluate.length=2048"]
        assert main(["summarize", *settings]) == 2  # there are no records
        assert "evaluate.length = 1024, now 2048: this run replaces" in capsys.readouterr().err
