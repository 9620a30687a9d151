"""Files appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baklava.errors import UserError
from baklava.files import atomic, read_json, write_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files") / "values.json"


def write_half(path: Path, then: BaseException) -> None:
    with atomic(path) as unfinished:
        unfinished.write_text("half")
        raise then


class TestAtomic:
    def test_file_appears_only_when_the_block_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "made" / "on" / "the" / "way" / "result.txt"
        with atomic(path) as unfinished:
            unfinished.write_text("half")
            assert not path.exists()
            unfinished.write_text("whole")
        assert path.read_text() == "whole"
        assert list(path.parent.iterdir()) == [path]

    def test_failure_leaves_the_old_content_and_no_trace(self, tmp_path: Path) -> None:
        path = tmp_path / "result.txt"
        path.write_text("old")
        with pytest.raises(RuntimeError, match="stop"):
            write_half(path, RuntimeError("stop"))
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_interruption_leaves_no_trace_either(self, tmp_path: Path) -> None:
        path = tmp_path / "result.txt"
        with pytest.raises(KeyboardInterrupt):
            write_half(path, KeyboardInterrupt())
        assert list(tmp_path.iterdir()) == []

    def test_unfinished_file_lies_beside_the_finished_one(self, tmp_path: Path) -> None:
        with atomic(tmp_path / "result.txt") as unfinished:
            unfinished.touch()
            assert unfinished.parent == tmp_path  # the rename must not cross file systems


class TestJson:
    @given(st.dictionaries(st.text().filter(lambda key: key not in ("schema_version", "sha256")), JSON, max_size=5))
    def test_reads_what_was_written(self, file: Path, values: dict[str, object]) -> None:
        write_json(file, values, schema=3)
        assert read_json(file, schema=3, what="test") == values

    def test_schema_version_comes_first_and_keys_stay_in_order(self, file: Path) -> None:
        write_json(file, {"zebra": 1, "aardvark": 2}, schema=3)
        assert list(json.loads(file.read_text())) == ["schema_version", "zebra", "aardvark", "sha256"]
        assert file.read_text().endswith("}\n")

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"", "not a readable song file"),
            (b'{"schema_version": 3', "not a readable song file"),
            (b"\xff\xfe", "not a readable song file"),
            (b"[" * 100_000, "not a readable song file"),
            (b'{"schema_version": ' + b"9" * 5000 + b"}", "not a readable song file"),
            (b"3", "has no schema_version"),
            (b'["schema_version"]', "has no schema_version"),
            (b"{}", "has no schema_version"),
            (b'{"schema_version": "3"}', "has no schema_version"),
            (b'{"schema_version": 3.0}', "has no schema_version"),
            (b'{"schema_version": 4}', "song schema 4, from a newer BaKlaVa; this one reads schema 3"),
            (b'{"schema_version": 2}', "song schema 2, from an older BaKlaVa; this one reads schema 3"),
        ],
    )
    def test_broken_files_are_named_in_one_line(self, file: Path, content: bytes, complaint: str) -> None:
        file.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_json(file, schema=3, what="song")
        assert str(error.value).startswith(f"{file}: ")
        assert complaint in str(error.value)
        assert "\n" not in str(error.value)

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"gone\.json: no such song file"):
            read_json(tmp_path / "gone.json", schema=3, what="song")
