"""Essay text: from where the user says, cut into sentences, never silently another."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from baklava.errors import UserError
from baklava.tasks.text.essay import (
    DEPTHS,
    STAND_IN,
    check_essay,
    draw_positions_at_depths,
    read_essay_words,
    split_sentences,
)

TEXT = "The boats left early. Where to? Nobody knew!\n\nThe harbour   was empty."


def test_words_are_the_same_from_every_layout(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": TEXT}))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in TEXT.split("\n\n")))
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "1.md").write_text(TEXT.split("\n\n")[0])
    (tmp_path / "folder" / "deep" / "2.txt").write_text(TEXT.split("\n\n")[1])
    (tmp_path / "folder" / "ignored.bin").write_bytes(b"\xff")
    for name in ("a.txt", "PaulGrahamEssays.json", "rows.jsonl", "folder"):
        assert read_essay_words(str(tmp_path / name), "train", None) == tuple(TEXT.split()), name


def test_a_data_set_gives_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from baklava.tasks.text import essay
    from baklava.tasks.text.rows import DatasetRows

    asked = []

    def load(path: str, **options: object) -> DatasetRows:
        asked.append((path, options))
        return DatasetRows(path, [{"text": "Two boats."}, {"text": "One gull."}])

    monkeypatch.setattr(essay, "load_dataset_rows", load)
    assert read_essay_words("someone/essays", "validation", "abc") == ("Two", "boats.", "One", "gull.")
    assert asked == [("someone/essays", {"name": None, "split": "validation", "revision": "abc"})]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b" \n ", "no words in this text"),
        ("a.txt", b"\xff\xfe", r"a\.txt, line 1: not in UTF-8 \(byte 0"),
        ("a.json", b'{"essay": "x"}', "text: expected an object with this field, as in RULER"),
        ("a.json", b"[", "text: expected an object with this field"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}', "line 2: text: expected a text, got 3"),
    ],
)
def test_bad_text_is_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_essay_words(str(tmp_path / name), "train", None)


class TestCheck:
    def test_no_text_says_what_to_provide(self) -> None:
        with pytest.raises(UserError, match=r"^task t: essay: no text given; set tasks\.t\.essay to RULER's Paul"):
            check_essay(None, task="t")

    def test_a_path_that_is_not_there_is_named(self) -> None:
        with pytest.raises(UserError, match=r"task t: essay: no such file or folder: /no/essay\.txt"):
            check_essay("/no/essay.txt", task="t")

    def test_a_file_that_is_no_text_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "essay.txt"
        path.write_bytes(b"Two boats.\n\xe9")
        check_essay(str(path), task="t")  # may be the beginning of a character: a look ends anywhere
        path.write_bytes(b"Two boats.\n\xe9.")
        with pytest.raises(UserError, match=r"essay\.txt, line 2: not in UTF-8"):
            check_essay(str(path), task="t")

    def test_the_stand_in_must_be_in_the_name(self) -> None:
        with pytest.raises(
            UserError, match="the name of the task must contain 'standin'; choose it from ruler_standin/"
        ):
            check_essay(STAND_IN, task="ruler_niah_single_2")
        assert check_essay(STAND_IN, task="ruler_standin_niah_single_2") == STAND_IN

    def test_the_stand_in_is_long(self) -> None:
        assert len(read_essay_words(STAND_IN, "train", None)) > 50_000


class TestSentences:
    def test_end_at_points_and_marks(self) -> None:
        words = TEXT.split()
        assert split_sentences(words, len(words)) == [
            "The boats left early.",
            "Where to?",
            "Nobody knew!",
            "The harbour was empty.",
        ]
        assert split_sentences(words, 5) == ["The boats left early.", "Where"]
        assert split_sentences(["He", "said:", '"No."', "Then", "he", "left."], 6) == [
            'He said: "No."',
            "Then he left.",
        ]

    def test_of_no_words_are_none(self) -> None:
        assert split_sentences(TEXT.split(), 0) == []

    def test_start_over_where_the_text_is_too_short(self) -> None:
        assert split_sentences(["A", "b."], 5) == ["A b.", "A b.", "A"]


def test_depths_are_rulers_forty() -> None:
    import numpy as np

    assert list(DEPTHS) == list(np.round(np.linspace(0, 100, num=40, endpoint=True)).astype(int))
    positions = draw_positions_at_depths(40, 200, random.Random(0))
    assert positions == sorted(200 * depth // 100 for depth in DEPTHS)
    assert len(set(positions)) == 40
