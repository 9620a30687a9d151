"""Budgets: exact totals, fair rounding, and a file that fails in one way only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from baklava.budgets import Budgets
from baklava.budgets.bits import EntrySize, parse_bits
from baklava.errors import UserError

SHARES = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(0, 1))
N_ENTRIES = st.integers(0, 5000)
RATIOS = st.floats(0, 1, exclude_max=True)

VALID = {"schema_version": 1, "ratio": 0.5, "shares": [[0.75, 0.25], [1.0, 0.0]]}


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("budgets") / "some-budgets.json"


class TestEntries:
    @given(SHARES, N_ENTRIES)
    def test_sum_is_exactly_the_total(self, shares: np.ndarray, n_entries: int) -> None:
        budgets = Budgets.from_shares(shares)
        assert budgets.entries(n_entries).sum() == round((1.0 - budgets.ratio) * shares.size * n_entries)

    @given(st.integers(1, 12), st.integers(1, 12), RATIOS, N_ENTRIES)
    @example(6, 4, 0.7, 1024)
    @example(1, 1, 0.5, 1)
    def test_sum_is_exact_for_the_uniform_share(
        self, n_layers: int, n_kv_heads: int, ratio: float, n_entries: int
    ) -> None:
        entries = Budgets.uniform(n_layers=n_layers, n_kv_heads=n_kv_heads, ratio=ratio).entries(n_entries)
        assert entries.shape == (n_layers, n_kv_heads)
        assert entries.sum() == round((1.0 - ratio) * n_layers * n_kv_heads * n_entries)
        assert entries.max() - entries.min() <= 1

    @given(SHARES, N_ENTRIES)
    def test_each_is_possible_and_within_one_of_its_share(self, shares: np.ndarray, n_entries: int) -> None:
        entries = Budgets.from_shares(shares).entries(n_entries)
        assert entries.dtype == np.int64
        assert (entries >= 0).all()
        assert (entries <= n_entries).all()
        assert (np.abs(entries - shares * n_entries) <= 1 + 1e-6).all()

    @given(SHARES, N_ENTRIES)
    def test_equal_budgets_give_equal_entries(self, shares: np.ndarray, n_entries: int) -> None:
        again = Budgets.from_shares(shares.tolist()).entries(n_entries)
        assert (Budgets.from_shares(shares).entries(n_entries) == again).all()

    def test_largest_remainders_get_what_is_left(self) -> None:
        # ideal: 3, 1.5, 0.75, 0.75; whole parts sum to 4 of 6
        assert Budgets.from_shares([[1.0, 0.5], [0.25, 0.25]]).entries(3).tolist() == [[3, 1], [1, 1]]

    def test_ties_go_to_the_earlier_cache(self) -> None:
        assert Budgets.uniform(n_layers=1, n_kv_heads=3, ratio=0.5).entries(1).tolist() == [[1, 1, 0]]

    def test_whole_caches_keep_everything_and_empty_ones_nothing(self) -> None:
        assert Budgets.from_shares([[1.0, 0.0]]).entries(777).tolist() == [[777, 0]]

    @pytest.mark.parametrize("n_entries", [0, 1, 10, 100_000])
    def test_total_survives_a_mean_that_is_slightly_off(self, n_entries: int) -> None:
        shares = np.full((4, 4), 0.5)
        shares[0, 0] += 1e-5  # mean 0.5 + 6e-7, within the tolerance
        entries = Budgets.from_shares(shares, ratio=0.5).entries(n_entries)
        assert entries.sum() == 8 * n_entries


class TestConstruction:
    def test_ratio_follows_from_the_shares(self) -> None:
        assert Budgets.from_shares([[0.5, 0.25], [0.0, 0.25]]).ratio == 0.75

    def test_shares_are_copied_and_frozen(self) -> None:
        mine = np.array([[0.5, 0.5]])
        budgets = Budgets.from_shares(mine)
        mine[0, 0] = 1.0
        assert budgets.shares.tolist() == [[0.5, 0.5]]
        with pytest.raises(ValueError, match="read-only"):
            budgets.shares[0, 0] = 1.0

    def test_shape_is_layers_by_kv_heads(self) -> None:
        assert Budgets.uniform(n_layers=5, n_kv_heads=2, ratio=0.3).shape == (5, 2)

    @pytest.mark.parametrize(
        ("shares", "ratio", "complaint"),
        [
            ([[0.5, 0.5]], 0.4, "mean share"),
            ([[0.5, 0.5]], 1.0, "ratio"),
            ([[0.5, 0.5]], -0.1, "ratio"),
            ([[0.5, 0.5]], float("nan"), "ratio"),
            ([[1.5, 0.5]], 0.0, r"\[0, 1\]"),
            ([[-0.5, 0.5]], None, r"\[0, 1\]"),
            ([[float("nan"), 0.5]], 0.5, r"\[0, 1\]"),
            ([[float("inf"), 0.5]], 0.5, r"\[0, 1\]"),
            ([0.5, 0.5], 0.5, "n_layers, n_kv_heads"),
            ([], 0.5, "n_layers, n_kv_heads"),
            ([[]], None, "ratio"),
            ([[0.5], [0.5, 0.5]], 0.5, "rectangular"),
            ([["0.5", "0.5"]], 0.5, "numbers"),
            ([[True, False]], 0.5, "numbers"),
            ([[None, 0.5]], 0.5, "numbers"),
            (None, 0.5, "numbers"),
        ],
    )
    def test_impossible_shares_are_refused(self, shares: Any, ratio: float | None, complaint: str) -> None:
        with pytest.raises(UserError, match=complaint):
            Budgets.from_shares(shares, ratio=ratio)


class TestFile:
    @given(SHARES)
    def test_loads_what_was_saved(self, file: Path, shares: np.ndarray) -> None:
        saved = Budgets.from_shares(
            shares, model="m", allocator="a", parameters={"slope": 2.0}, provenance={"loss": 0.25, "of": ["x"]}
        )
        saved.save(file)
        loaded = Budgets.load(file)
        assert loaded.ratio == saved.ratio
        assert np.abs(loaded.shares - saved.shares).max() <= 1e-12
        assert (loaded.model, loaded.allocator) == ("m", "a")
        assert (loaded.parameters, loaded.provenance) == ({"slope": 2.0}, {"loss": 0.25, "of": ["x"]})

    def test_saving_what_was_loaded_gives_the_same_bytes(self, file: Path) -> None:
        Budgets.from_shares(np.random.default_rng(0).random((6, 4)), model="m").save(file)
        first = file.read_bytes()
        Budgets.load(file).save(file)
        assert file.read_bytes() == first

    def test_says_what_it_is(self, file: Path) -> None:
        Budgets.uniform(n_layers=1, n_kv_heads=2, ratio=0.25, model="m").save(file)
        held = json.loads(file.read_text())
        assert len(held.pop("sha256")) == 64
        assert held == {
            "schema_version": 1,
            "model": "m",
            "allocator": "uniform",
            "ratio": 0.25,
            "parameters": {},
            "provenance": {},
            "shares": [[0.75, 0.75]],
        }

    def test_where_they_come_from_may_be_said_with_numbers_of_numpy_and_paths(self, file: Path) -> None:
        origin = {
            "parameters": {"slope": np.float32(0.5), "floor": np.float64(0.25), "loss": np.float64("nan")},
            "provenance": {"seed": np.int64(3), "profile": Path("a b/p.safetensors"), "scores": np.arange(2)},
        }
        budgets = Budgets.from_shares(np.full((2, 2), 0.5, np.float32), ratio=np.float32(0.5), **origin)
        budgets.save(str(file))
        loaded = Budgets.load(file)
        assert loaded.parameters == {"slope": 0.5, "floor": 0.25, "loss": None}
        assert loaded.provenance == {"seed": 3, "profile": "a b/p.safetensors", "scores": [0, 1]}
        assert (loaded.shares.tolist(), loaded.ratio) == ([[0.5, 0.5], [0.5, 0.5]], 0.5)

    def test_needs_only_shares_and_ratio(self, file: Path) -> None:
        file.write_text(json.dumps(VALID))
        assert Budgets.load(file).shares.tolist() == VALID["shares"]

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"nothing-here\.json: no such budgets file"):
            Budgets.load(tmp_path / "nothing-here.json")

    def test_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="not a readable budgets file"):
            Budgets.load(tmp_path)

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("", "not a readable"),
            (json.dumps(VALID)[:-5], "not a readable"),
            ("not json", "not a readable"),
            ("[" * 100_000, "not a readable"),
            ("null", "schema_version"),
            ("[]", "schema_version"),
            (json.dumps({key: value for key, value in VALID.items() if key != "schema_version"}), "schema_version"),
            (json.dumps({**VALID, "schema_version": True}), "schema_version"),
            (json.dumps({**VALID, "schema_version": 3}), "schema 3, from a newer BaKlaVa"),
            (json.dumps({**VALID, "schema_version": 0}), "schema 0, from an older BaKlaVa"),
            (json.dumps({"schema_version": 1, "ratio": 0.5}), "'shares' is missing"),
            (json.dumps({"schema_version": 1, "shares": [[0.5]]}), "'ratio' is missing"),
            (json.dumps({**VALID, "ratio": "0.5"}), "ratio must be float or int, got str"),
            (json.dumps({**VALID, "ratio": True}), "ratio must be float or int, got bool"),
            (json.dumps({**VALID, "ratio": None}), "ratio must be float or int, got NoneType"),
            (json.dumps({**VALID, "ratio": float("nan")}), "ratio must be a number in"),
            (json.dumps({**VALID, "ratio": 1}), "ratio must be a number in"),
            (json.dumps({**VALID, "ratio": -0.5}), "ratio must be a number in"),
            (json.dumps({**VALID, "ratio": 10**400}), "too large"),
            (json.dumps({**VALID, "ratio": 0.4}), "mean share must be 1 - ratio = 0.600000, got 0.500000"),
            (json.dumps({**VALID, "shares": [[0.75, 0.25], [1.0]]}), "rectangular"),
            (json.dumps({**VALID, "shares": [0.5, 0.5]}), "n_layers, n_kv_heads"),
            (json.dumps({**VALID, "shares": [[[0.5]]]}), "n_layers, n_kv_heads"),
            (json.dumps({**VALID, "shares": []}), "n_layers, n_kv_heads"),
            (json.dumps({**VALID, "shares": 0.5}), "shares must be list"),
            (json.dumps({**VALID, "shares": [["0.5", "0.5"]]}), "numbers"),
            (json.dumps({**VALID, "shares": [[None, 0.5]]}), "numbers"),
            (json.dumps({**VALID, "shares": [[10**400, 0.5]]}), "numbers"),
            (json.dumps({**VALID, "shares": [[1.25, -0.25]]}), "every share must be a number in"),
            (json.dumps({**VALID, "shares": [[float("nan"), 0.5]]}), "every share must be a number in"),
            (json.dumps({**VALID, "model": 3}), "model must be str"),
            (json.dumps({**VALID, "parameters": [["slope", 2]]}), "parameters must be dict"),
            (json.dumps({**VALID, "provenance": None}), "provenance must be dict"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line_that_names_the_file(self, file: Path, text: str, complaint: str) -> None:
        file.write_text(text)
        with pytest.raises(UserError) as error:
            Budgets.load(file)
        assert complaint in str(error.value)
        assert str(error.value).startswith(f"{file}: ")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("key", ["schema_version", "shares", "ratio", "model", "parameters"])
    def test_deep_nesting_is_refused_or_harmless(self, file: Path, key: str) -> None:
        for depth in (*range(1, 1100, 23), 20_000):
            nested = '{"a":' * depth + "0" + "}" * depth if key == "parameters" else "[" * depth + "]" * depth
            others = ", ".join(f'"{name}": {json.dumps(value)}' for name, value in VALID.items() if name != key)
            file.write_text(f'{{{others}, "{key}": {nested}}}')
            loads_or_is_refused(file)

    @given(st.binary(max_size=200))
    @settings(max_examples=60)
    def test_arbitrary_bytes_are_refused(self, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        loads_or_is_refused(file)

    @given(st.data())
    @settings(max_examples=150)
    def test_arbitrary_values_are_refused_or_make_valid_budgets(self, file: Path, data: st.DataObject) -> None:
        numbers = st.integers() | st.floats() | st.sampled_from([0, 1, 0.5])
        json_values = st.recursive(
            st.none() | st.booleans() | numbers | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=8,
        )
        changed = st.dictionaries(st.sampled_from([*VALID, "model", "parameters", "other"]), json_values, max_size=2)
        content = data.draw(st.builds(lambda some: {**VALID, **some}, changed) | json_values)
        file.write_text(json.dumps(content))
        loads_or_is_refused(file)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if not str(error).startswith(f"{file}: "):
            raise AssertionError(f"the file is not named: {error}") from error
        raise


def loads_or_is_refused(file: Path) -> None:
    """Any exception but a `UserError` that names the file fails the test; so do budgets that break their promises."""
    budgets = None
    with suppress(UserError), naming(file):
        budgets = Budgets.load(file)
    if budgets is None:
        return
    assert 0 <= budgets.ratio < 1
    assert ((budgets.shares >= 0) & (budgets.shares <= 1)).all()
    assert budgets.entries(100).sum() == round((1 - budgets.ratio) * budgets.shares.size * 100)


def test_what_is_printed_is_one_line() -> None:
    budgets = Budgets(np.array([[1.0, 0.02], [0.18, 0.0]]), 0.7, model="tiny", allocator="baklava")
    assert str(budgets) == "budgets by baklava for tiny: r = 0.7, shares 0 to 1 of 2 x 2 KV caches"
    assert str(Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=0.5)).startswith("budgets by uniform: r = 0.5, ")


class TestGroupsAndPages:
    def test_are_saved_only_where_there_are_any(self, tmp_path: Path) -> None:
        shares = [[0.5, 0.5, 0.1, 0.1]]
        Budgets.from_shares(shares).save(tmp_path / "free.json")
        assert not {"group", "page"} & json.loads((tmp_path / "free.json").read_text()).keys()
        Budgets.from_shares(shares, group=2, page=16).save(tmp_path / "paged.json")
        again = Budgets.load(tmp_path / "paged.json")
        assert (again.group, again.page) == (2, 16)
        assert again.entries(100).tolist() == [[48, 48, 16, 16]]  # of 2 * 7 blocks, 4; ideally 3.5 and 0.7

    @pytest.mark.parametrize(
        ("shape", "said"),
        [
            ({"group": 3}, "group must divide the 4 KV heads"),
            ({"page": 0}, "page be at least 1"),
            ({"group": 4}, "equal"),
        ],
    )
    def test_impossible_ones_are_refused(self, shape: dict[str, int], said: str) -> None:
        with pytest.raises(UserError, match=said):
            Budgets.from_shares([[0.5, 0.5, 0.1, 0.1]], **shape)


class TestBits:
    """With bits a budget is bytes, and their sum is exact to one group."""

    @given(
        st.floats(0.05, 0.97),
        st.integers(100, 3000),
        st.lists(st.sampled_from([2, 4, 8, 16]), min_size=6, max_size=6),
        st.integers(0, 10),
    )
    def test_bytes_are_within_a_group_of_the_total(
        self, ratio: float, length: int, widths: list[int], seed: int
    ) -> None:
        bits = np.array(widths).reshape(2, 3)
        relative = EntrySize().relative(parse_bits(bits, (2, 3)))
        random = np.random.default_rng(seed).uniform(0.2, 1.0, (2, 3))
        shares = random * min((1.0 - ratio) / (random * relative).mean(), 1.0 / random.max())
        budgets = Budgets.from_shares(shares, bits=bits)
        size = EntrySize(dims=(64, 64))
        counts = budgets.entries(length, size)
        taken = size.packing.cache_bytes(counts, parse_bits(bits, (2, 3)), size.dims, size.itemsize).sum()
        left = (1.0 - budgets.ratio) * 6 * length * size.n_bytes - taken
        largest = max(size.packing.group_bytes(np.array([width] * 2), size.dims, 2) for width in widths)
        exact = (size.packing.group + size.packing.sinks) * size.n_bytes  # the last entries, in no group
        assert left >= 0
        assert left < max(largest, exact) or (counts == length).all()
        whole = (counts - 4) % 32 == 0
        assert (whole | (counts <= 4) | (counts == length) | (bits == 16)).all()

    @pytest.mark.parametrize("width", [16, 8, 4, 2])
    def test_every_entry_is_kept_where_the_total_allows_it(self, width: int) -> None:
        budgets = Budgets.from_shares(np.ones((2, 2)), ratio=0.0, bits=width)
        assert (budgets.entries(1000) == 1000).all()

    @pytest.mark.parametrize(("bits", "share"), [(4, 0.8), ((4, 2), 1.0), ([[2, 16], [4, 8]], 0.5), (16, 0.25)])
    def test_they_are_read_wherever_budgets_are_made(self, bits: Any, share: float) -> None:
        """A KV cache takes 3/16 of its bytes at 2 bits, 5/16 at 4 and 9/16 at 8."""
        ratio = 0.75 if share != 0.5 else 1 - (3 + 16 + 5 + 9) / 128
        budgets = Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=ratio, bits=bits)
        assert budgets.shares == pytest.approx(np.full((2, 2), share))
        alike = Budgets(budgets.shares, ratio, bits=bits)
        for made in (budgets, alike):
            assert (made.bits is None) if bits == 16 else (made.bits == parse_bits(bits, (2, 2))).all()
            assert (made.entries(1000) == alike.entries(1000)).all()
        for wrong in (3, np.full((3, 2), 4)):
            with pytest.raises(UserError, match="bits must be 16, 8, 4 or 2"):
                Budgets.uniform(n_layers=2, n_kv_heads=2, ratio=ratio, bits=wrong)

    def test_files_hold_bits_and_older_files_load(self, tmp_path: Path) -> None:
        plain, quantised = (Budgets.from_shares(np.full((2, 2), 0.5), bits=bits) for bits in (None, [[2, 4], [16, 8]]))
        for budgets, schema in ((plain, 1), (quantised, 2)):
            budgets.save(tmp_path / "b.json")
            assert json.loads((tmp_path / "b.json").read_text())["schema_version"] == schema
            loaded = Budgets.load(tmp_path / "b.json")
            assert loaded.ratio == budgets.ratio
            assert loaded.width == budgets.width
            assert (loaded.entries(777) == budgets.entries(777)).all()
        assert quantised.width == "mixed"
        assert quantised.ratio > plain.ratio

    def test_bits_that_cannot_be_name_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "b.json"
        values = {"schema_version": 2, "ratio": 0.5, "shares": [[0.5, 0.5]], "bits": 3}
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match=r"b\.json: bits must be 16, 8, 4 or 2, got 3"):
            Budgets.load(path)
        path.write_text(json.dumps({**values, "bits": 4}))
        with pytest.raises(UserError, match=r"b\.json: budgets: shares and bits must take"):
            Budgets.load(path)
