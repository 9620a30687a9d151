"""Files appear whole or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baklava.errors import UserError
from baklava.system.files import atomic, expand_home, read_json, write_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def finite(value: object) -> object:
    """With null for the infinite numbers among them."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def dressed(value: object) -> object:
    """The same in NumPy's numbers, and texts as paths where that does not change them."""
    if isinstance(value, dict):
        return {name: dressed(one) for name, one in value.items()}
    if isinstance(value, list):
        return tuple(dressed(one) for one in value)
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int64(value) if abs(value) < 2**63 else value
    if isinstance(value, float):
        return np.float64(value)
    return Path(value) if isinstance(value, str) and str(Path(value)) == value else value


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files") / "values.json"


def write_half(path: Path, then: BaseException) -> None:
    with atomic(path) as unfinished:
        unfinished.write_text("half")
        raise then


def test_a_home_folder_is_put_for_its_sign_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/a b") == Path("/home/me/a b")
    for path in ("~draft.txt", "~nobody-at-all/x", "a/~/b", "/~"):
        assert expand_home(path) == Path(path)


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
        assert read_json(file, schema=3, what="test") == {name: finite(value) for name, value in values.items()}

    @given(JSON)
    def test_values_of_numpy_and_paths_are_saved_as_plain_ones(self, file: Path, value: object) -> None:
        write_json(file, {"value": dressed(value)}, schema=3)
        written = file.read_text()
        json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert read_json(file, schema=3, what="test") == {"value": finite(value)}

    def test_what_is_not_finite_is_null(self, file: Path) -> None:
        values = {"a": math.nan, "b": [np.float32("inf"), {"c": -np.inf}], "d": np.array([1.0, np.nan])}
        write_json(file, values, schema=3)
        assert read_json(file, schema=3, what="test") == {"a": None, "b": [None, {"c": None}], "d": [1.0, None]}

    def test_kinds_of_numbers(self, file: Path) -> None:
        values = {"a": np.int64(2**40), "b": np.float16(0.5), "c": np.bool_(True), "d": np.str_("x"), "e": (1, 2)}
        write_json(file, {**values, "f": torch.tensor([[1, 2]]), "g": {np.int32(3): Path("a b")}}, schema=3)
        expected = {"a": 2**40, "b": 0.5, "c": True, "d": "x", "e": [1, 2], "f": [[1, 2]], "g": {"3": "a b"}}
        assert read_json(file, schema=3, what="test") == expected

    @pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), 1j])
    def test_anything_else_is_refused_by_file_and_key(self, tmp_path: Path, value: object) -> None:
        with pytest.raises(UserError, match=rf"x\.json: a\.b: a {type(value).__name__} cannot be saved"):
            write_json(tmp_path / "x.json", {"a": {"b": [value]}}, schema=3)
        assert list(tmp_path.iterdir()) == []

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
