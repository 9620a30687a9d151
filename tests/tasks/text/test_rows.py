"""Data files: every mistake names the file, the line and the field, and spoils no other row."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from baklava.errors import DataError, UserError
from baklava.tasks.text.rows import JsonLines, Row, is_local, load_dataset_rows, read_jsonl, read_zipped


def row(**values: object) -> Row:
    return Row("f.jsonl, line 3", values)


class TestRow:
    def test_gives_fields_of_the_right_type(self) -> None:
        one = row(a="text", b=["x", "y"], c=3, d=None)
        assert (one.text("a"), one.texts("b"), one.count("c"), one.name("c")) == ("text", ("x", "y"), 3, "3")
        assert one.has("a")
        assert not one.has("d")
        assert not one.has("e")

    @pytest.mark.parametrize(
        ("kind", "value", "said"),
        [
            ("text", 3, "expected a text, got 3; put it in quotes"),
            ("text", ["a"], r"expected a text, got \['a'\]"),
            ("texts", "a", r'expected a list of texts, got \'a\'; write it as \["one", "another"\]'),
            ("texts", [], r"expected a list of texts, got \[\]"),
            ("texts", ["a", 1], "expected a list of texts"),
            ("count", 0, "expected a whole number from 1, got 0"),
            ("count", 2.0, "expected a whole number from 1, got 2.0"),
            ("count", True, "expected a whole number from 1, got True"),
            ("name", 1.5, "expected a text or a whole number, got 1.5"),
            ("text", "a\ud83d", r"\\ud83d is half of a character; remove it or add the rest"),
            ("texts", ["a", "\udc00"], r"\\udc00 is half of a character"),
            ("text", None, "missing; the row has field; add the field field"),
        ],
    )
    def test_names_place_field_value_and_remedy(self, kind: str, value: object, said: str) -> None:
        with pytest.raises(UserError, match=rf"^f\.jsonl, line 3: field: {said}"):
            getattr(row(field=value), kind)("field")

    def test_does_not_repeat_a_whole_book(self) -> None:
        with pytest.raises(UserError) as error:
            row(field="word " * 10_000).texts("field")
        assert len(str(error.value)) < 200


class TestJsonLines:
    def test_counts_lines_as_an_editor_does(self) -> None:
        rows = JsonLines("f.jsonl", b'\n{"a": "x"}\r\n\n  \n{"a": "y"}')
        assert [one.location for one in rows] == ["f.jsonl, line 2", "f.jsonl, line 5"]
        assert [one.text("a") for one in rows] == ["x", "y"]

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (b'{"a": 1', "not JSON .* at column 8.; each line is one object"),
            (b"[" * 100_000, "not JSON"),
            (b'["a"]', r"expected an object with named fields, got \['a'\]"),
        ],
    )
    def test_a_bad_line_is_named_and_the_others_are_there(self, line: bytes, said: str) -> None:
        rows = JsonLines("f.jsonl", b'{"a": "x"}\n' + line + b'\n{"a": "y"}\n')
        assert len(rows) == 3
        assert rows[0].text("a") == "x"
        assert rows[2].text("a") == "y"
        with pytest.raises(UserError, match=rf"^f\.jsonl, line 2: {said}") as error:
            rows[1]
        assert "\n" not in str(error.value)

    def test_a_file_in_another_encoding_has_no_rows_at_all(self) -> None:
        content = '{"a": "x"}\n{"a": "Höhe"}\n'
        assert JsonLines("f.jsonl", content.encode())[1].text("a") == "Höhe"
        with pytest.raises(DataError, match=r"^f\.jsonl, line 2: not in UTF-8 \(byte 19 of the file\); convert it$"):
            JsonLines("f.jsonl", content.encode("latin-1"))

    def test_a_mark_at_the_beginning_is_no_part_of_the_text(self) -> None:
        assert JsonLines("f.jsonl", b"\xef\xbb\xbf" + b'{"a": "x"}')[0].text("a") == "x"


class TestSources:
    def test_a_look_may_end_inside_a_character(self, tmp_path: Path) -> None:
        path = tmp_path / "f.jsonl"
        path.write_bytes('{"a": "é"}\n'.encode())
        read_jsonl(path, max_bytes=8)
        path.write_bytes(b'{"a": "\xe9"}\n')
        with pytest.raises(DataError, match=r"f\.jsonl, line 1: not in UTF-8"):
            read_jsonl(path, max_bytes=9)

    def test_a_file_that_is_not_there_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"nothing\.jsonl: cannot be read \(No such file or directory\)"):
            read_jsonl(tmp_path / "nothing.jsonl")

    def test_an_archive_is_searched_in_all_its_folders(self, tmp_path: Path) -> None:
        path = tmp_path / "data.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data/other.jsonl", '{"a": "no"}')
            archive.writestr("data/mine.jsonl", '{"a": "yes"}')
        [one] = read_zipped(path, "mine.jsonl")
        assert one.text("a") == "yes"
        assert one.location == f"{path}/data/mine.jsonl, line 1"
        with pytest.raises(UserError, match=r"data\.zip: no theirs\.jsonl in this archive"):
            read_zipped(path, "theirs.jsonl")

    def test_a_broken_archive_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "data.zip"
        path.write_bytes(b"not a zip")
        with pytest.raises(UserError, match=r"data\.zip: not a readable zip archive .*; download it again"):
            read_zipped(path, "mine.jsonl")

    def test_a_folder_loads_through_datasets(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "test.jsonl").write_text('{"a": "x", "b": ["y"]}\n{"a": "z", "b": ["w"]}\n')
        rows = load_dataset_rows(str(tmp_path / "mine"), name=None, split="test", revision=None)
        assert [(one.text("a"), one.texts("b")) for one in rows] == [("x", ("y",)), ("z", ("w",))]
        assert rows[1].location == f"data set {tmp_path / 'mine'}, row 1"
        with pytest.raises(UserError, match=r"split train, revision None.* cannot be loaded") as error:
            load_dataset_rows(str(tmp_path / "mine"), name=None, split="train", revision=None)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("path", "local"),
        [
            ("THUDM/LongBench", False),
            ("squad_v2", False),
            ("data.zip", True),
            ("./folder", True),
            ("/data/longbench", True),
            ("~/longbench", True),
            ("a/b/c", True),
            ("folder/file.jsonl", True),
        ],
    )
    def test_tells_paths_from_hub_ids(self, path: str, local: bool) -> None:
        assert is_local(path) is local
