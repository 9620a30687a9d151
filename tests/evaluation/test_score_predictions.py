"""`baklava score`: predictions from elsewhere, one number per metric, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from baklava.cli import main


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "predictions.jsonl"


def scored(task: str, file: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["score", "--task", task, "--predictions", str(file)]) == 0
    return capsys.readouterr().out.splitlines()


def complaint(task: str, file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["score", "--task", task, "--predictions", str(file)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


def test_prints_the_metric_and_the_mean(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        file,
        {"prediction": "The boats.", "answers": ["boats", "ships"]},
        {"prediction": "two boats", "answers": ["boats"]},
        {"prediction": "", "answers": ["boats"]},
    )
    assert scored("longbench/hotpotqa", file, capsys) == [f"qa_f1 {(1 + 2 / 3) / 3:.4f}"]


def test_needs_neither_data_nor_classes_where_the_metric_does_not(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(file, {"prediction": "12 or 13", "answers": ["13", "14"], "extra": 1})
    assert scored("ruler/niah_multiquery", file, capsys) == ["string_match_all 0.5000"]
    assert scored("ruler/qa_1", file, capsys) == ["string_match_part 1.0000"]
    assert scored("jsonl", file, capsys) == [f"qa_f1 {0.5:.4f}"]


def test_first_line_rule_and_classes_of_the_row(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        file,
        {"prediction": "\nDate\nPlace", "answers": ["Date"], "all_classes": ["Date", "Place"]},
        {"prediction": "Date, Place", "answers": ["Date"], "all_classes": ["Date", "Place"]},
    )
    assert scored("longbench/trec", file, capsys) == ["classification 0.7500"]


def test_longbench_e_is_averaged_by_length_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(1000, "boats"), (2000, "gulls"), (9000, "boats")]
    write(file, *({"prediction": text, "answers": ["boats"], "length": n} for n, text in rows))
    assert scored("longbench/hotpotqa_e", file, capsys) == ["qa_f1 0.6667", "qa_f1 0-4k 0.5000", "qa_f1 8k+ 1.0000"]


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("longbench/hotpotqa", "{", "line 2: not JSON"),
        ("longbench/hotpotqa", {"answers": ["x"]}, "line 2: prediction: missing; the row has answers"),
        ("longbench/hotpotqa", {"prediction": 3, "answers": ["x"]}, "line 2: prediction: expected a text, got 3"),
        ("longbench/hotpotqa", {"prediction": "x", "answers": "x"}, "line 2: answers: expected a list of texts"),
        ("longbench/hotpotqa", {"prediction": "x", "answers": []}, "line 2: answers: expected a list of texts, got []"),
        ("longbench/hotpotqa_e", {"prediction": "x", "answers": ["x"]}, "line 2: length: missing"),
        ("longbench/trec", {"prediction": "x", "answers": ["x"]}, "line 2: all_classes: missing"),
        (
            "longbench/passage_retrieval_en",
            {"prediction": "1", "answers": ["1"]},
            "line 2: answers: expected `Paragraph",
        ),
    ],
)
def test_a_bad_row_names_file_line_and_field(
    task: str, row: Any, said: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prediction": "x", "answers": ["Paragraph 1"], "all_classes": ["Paragraph 1"], "length": 1}
    write(file, good, row)
    assert f"{file}, {said}" in complaint(task, file, capsys)


def test_other_mistakes_are_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read (No such file or directory)" in complaint("vt", file, capsys)
    write(file)
    assert "no predictions" in complaint("vt", file, capsys)
    assert "no task 'longbench/hotpot' in" in complaint("longbench/hotpot", file, capsys)
    assert "try longbench/hotpotqa, " in complaint("longbench/hotpot", file, capsys)


def test_help_says_which_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["score", "--help"])
    assert done.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "usage: baklava score" in shown
    assert all(field in shown for field in ("prediction", "answers", "all_classes", "longbench/hotpotqa"))


def test_scores_without_loading_a_model_library(file: Path) -> None:
    write(file, {"prediction": "x", "answers": ["x"]})
    code = (
        "import sys\nfrom baklava.cli import main\n"
        f"main(['score', '--task', 'longbench/gov_report', '--predictions', {str(file)!r}])\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'jieba', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "rouge_l 1.0000\n[]\n"
