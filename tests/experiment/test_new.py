"""`baklava new`: settings kept in a file give the experiment that they give as overrides."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from baklava.cli import main
from baklava.experiment.compose import compose


@pytest.fixture(autouse=True)
def conf(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(repository / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "conf" / "experiment"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=[tiny-llama,tiny-qwen2]", "task=[vt,ruler/cwe]", "evaluate.length=2k", "ratios=[0, 0.5]"],
        ["experiment=demo", "task=vt", "claims.gain_at={0.7: 3}", "models.tiny-qwen2.dtype=bfloat16"],
        ["model=qwen2.5-7b", "models.qwen2.5-7b.path=a=b/c (1)", "calibration=mixed"],
    ],
)
def test_the_file_gives_what_the_overrides_give(conf: Path, overrides: list[str], capsys) -> None:
    assert main(["new", "mine", *overrides]) == 0
    assert capsys.readouterr().out == f"{conf}/mine.yaml; run it with `baklava run experiment=mine`\n"
    assert compose(["experiment=mine"]) == compose([*overrides, "name=mine"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo"], "demo.yaml: there already; edit it, or give another name"),
        (["mine", "evaluate.nonsense=1"], "evaluate.nonsense"),
        (["mine", "model=none-such"], "model/none-such"),
        (["mine", "~tracking"], "~tracking: a file keeps settings of the form KEY=VALUE"),
        (["my/own"], "'my/own' is no name of an experiment"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(conf: Path, arguments: list[str], said: str, capsys) -> None:
    before = sorted(conf.iterdir())
    assert main(["new", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(conf.iterdir()) == before
