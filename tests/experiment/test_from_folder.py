"""Commands work from a results folder alone, with the settings that are written there."""

from __future__ import annotations

from pathlib import Path

import pytest

from baklava.cli import main
from baklava.errors import UserError
from baklava.experiment.compose import compose
from baklava.experiment.from_folder import experiment_of
from baklava.experiment.ownership import claim_results

SETTINGS = ["experiment=smoke", "name=mine", "task=vt", "evaluate.n_samples=9", "resources.profile.mem_mb=7"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    overrides = [*SETTINGS, f"results={tmp_path}"]
    claim_results(compose(overrides), overrides)
    return tmp_path / "mine"


def test_the_settings_are_those_of_the_last_run(folder: Path) -> None:
    config, overrides = experiment_of([str(folder)])
    expected = compose([*SETTINGS[:-1], f"results={folder.parent}"])
    assert config.model_dump(exclude={"resources", "plan"}) == expected.model_dump(exclude={"resources", "plan"})
    assert overrides == [*SETTINGS, f"results={folder.parent}"]


def test_a_folder_that_was_renamed_is_the_experiment_of_its_name(folder: Path, monkeypatch) -> None:
    moved = folder.rename(folder.parent / "theirs")
    config, _ = experiment_of([str(moved)])
    assert (config.name, config.results) == ("theirs", folder.parent)
    monkeypatch.chdir(moved)
    assert experiment_of(["."])[0].results == folder.parent


def test_settings_are_taken_as_ever() -> None:
    assert experiment_of(SETTINGS) == (compose(SETTINGS), SETTINGS)


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes no 'ratios=.0,0.5.' beside it"):
        experiment_of([str(folder), "ratios=[0,0.5]"])
    with pytest.raises(UserError, match=r"no experiment\.json there"):
        experiment_of([str(tmp_path)])
    with pytest.raises(UserError, match=r"results/nowhere: neither a setting \(KEY=VALUE\) nor a results folder"):
        experiment_of(["results/nowhere"])


def test_stages_take_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The records that the summary misses are those of the folder's experiment."""
    assert main(["summarize", str(folder)]) == 2
    assert f"{folder}/records/tiny-llama/vt.parquet" in capsys.readouterr().err
