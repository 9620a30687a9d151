"""The store: what was added is there after a kill, what was damaged is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baklava.errors import UserError
from baklava.system.append_log import AppendLog

VALUES = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.dictionaries(
        st.text(max_size=5), st.none() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
    ),
    max_size=6,
)


def filled(path: Path, **entries: object) -> bytes:
    store = AppendLog(path)
    for key, value in entries.items():
        store.add({key: value})
    store.close()
    return path.read_bytes()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=VALUES, second=VALUES)
def test_gives_back_the_last_value_of_every_key(tmp_path: Path, first: dict, second: dict) -> None:
    path = tmp_path / "s.lines"
    path.unlink(missing_ok=True)
    store = AppendLog(path)
    store.add(first)
    store.add(second)
    expected = {**first, **second}
    for one in (store, AppendLog(path)):  # as it is, and read again
        assert len(one) == len(expected)
        assert {key: one[key] for key in expected} == expected
    assert "no such key" not in store


def test_a_write_that_was_cut_short_loses_only_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = filled(tmp_path / "whole", a={"x": 1}, b={"x": "two\nlines é"}, c={"x": 3})
    end_of_b = len(filled(tmp_path / "part", a={"x": 1}, b={"x": "two\nlines é"}))
    for cut in range(end_of_b + 1, len(whole)):
        path = tmp_path / "cut"
        path.write_bytes(whole[:cut])
        store = AppendLog(path)
        assert (store["a"], store["b"], "c" in store) == ({"x": 1}, {"x": "two\nlines é"}, False)
        assert "line 4 is damaged" in capsys.readouterr().err
        store.add({"c": {"x": 3}})
        assert AppendLog(path)["c"] == {"x": 3}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 10_000))
def test_a_flipped_bit_is_never_read_as_a_value(tmp_path: Path, bit: int) -> None:
    entries = {"a": {"score": 0.5}, "b": {"score": 0.25, "prediction": " 1234567."}}
    data = bytearray(filled(tmp_path / f"{bit}", **entries))
    start = data.index(b"\n") + 1
    place = start + bit // 8 % (len(data) - start)
    data[place] ^= 1 << bit % 8
    path = tmp_path / "flipped"
    path.write_bytes(data)
    store = AppendLog(path)
    assert all(store[key] == value for key, value in entries.items() if key in store)
    assert len(store) < 2 or data[place - 1 : place + 1] == b"\n"


@pytest.mark.parametrize("content", [b"something else\n", b"baklava store 0\n", b"baklava store 10"])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"other: not a store of this version"):
        AppendLog(path)
    assert path.read_bytes() == content


class TestOthers:
    """Stores of other processes, which may be writing to them."""

    def test_are_looked_into_and_left_alone(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other, own = tmp_path / "other", tmp_path / "own"
        filled(own, b={"x": "own"})
        whole = filled(other, a={"x": 1}, b={"x": "other"}, c={"x": 3})
        other.write_bytes(whole[:-5])  # its writer is in the middle of c
        store = AppendLog(own, [other])
        assert (store["a"], store["b"], "c" in store) == ({"x": 1}, {"x": "own"}, False)
        store.add({"d": {"x": 4}})
        assert other.read_bytes() == whole[:-5]
        assert capsys.readouterr().err == ""
        alone = AppendLog(own)
        assert (sorted(key for key in "abcd" if key in alone), alone["d"]) == (["b", "d"], {"x": 4})

    def test_one_without_a_header_yet_holds_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "other").touch()
        assert len(AppendLog(tmp_path / "own", [tmp_path / "other"])) == 0

    def test_damage_in_one_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = filled(tmp_path / "other", a={"x": 1}, b={"x": 2})
        (tmp_path / "other").write_bytes(data.replace(b'"x": 1', b'"x": 7'))
        store = AppendLog(tmp_path / "own", [tmp_path / "other"])
        assert ("a" in store, store["b"]) == (False, {"x": 2})
        assert "other: line 2 is damaged" in capsys.readouterr().err
