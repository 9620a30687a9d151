"""Budgets from and to other projects' files: what they mean, round trips, and files that are wrong."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_profiles import flat_profile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from baklava.allocation import BudgetsFile
from baklava.allocation.formats import FORMATS, Options
from baklava.allocation.formats.convert import read_budgets
from baklava.budgets import Budgets
from baklava.cli import main
from baklava.errors import UserError

SHAPE = (4, 2)
GATES = np.array([[0.9, 0.1], [0.2, 0.8], [0.0, 1.0], [0.3, 0.4]])
SHARES = np.array([[0.9, 0.1], [0.2, 0.8], [0.05, 1.0], [0.3, 0.45]])
BUDGETS = Budgets.from_shares(SHARES, model="some-model")


def write_duo(folder: Path, gates: Any = GATES, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    np.savetxt(folder / "full_attention_heads.tsv", gates, delimiter="\t")
    (folder / "config.json").write_text(json.dumps({"sink_size": 10, "recent_size": 15, "model_name": "m", **config}))
    return folder


def write_proportions(path: Path, proportions: Any = None) -> Path:
    proportions = SHARES / SHARES.sum() if proportions is None else np.asarray(proportions)
    values = {f"L{layer}H{head}": value for (layer, head), value in np.ndenumerate(proportions)}
    path.write_text(json.dumps(values))
    return path


def write_profile(path: Path, retained: Any = GATES, **changed: Any) -> Path:
    fields = {
        "ratio_per_head": np.asarray(retained, np.float32)[None],
        "sample_meta": np.array([[100, 4, 104, 6]], np.int32),
        "meta": np.frombuffer(b'{"window_size": 6, "model_name": "m"}', np.uint8),
    }
    np.savez(path, **{name: value for name, value in {**fields, **changed}.items() if value is not None})
    return path


def write_curve(path: Path) -> Path:
    np.save(path, np.linspace(0.01, 0.99, 99)[:, None, None] * np.ones((1, *SHAPE)))
    return path


class TestImport:
    def test_duo_keeps_the_highest_gates_full_and_sinks_and_window_of_the_others(self, tmp_path: Path) -> None:
        budgets = read_budgets(write_duo(tmp_path), "duo", Options(ratio=0.45, context=100))
        # (8 * 0.55 - 8 * 0.25) / 0.75 = 3.2 heads are full
        expected = np.full(SHAPE, 0.25)
        expected[2, 1], expected[0, 0], expected[1, 1], expected[3, 1] = 1.0, 1.0, 1.0, 0.25 + 0.2 * 0.75
        np.testing.assert_allclose(budgets.shares, expected)
        assert budgets.model == "m"
        assert budgets.provenance["imported"]["file"] == "full_attention_heads.tsv"
        assert len(budgets.provenance["imported"]["sha256"]) == 64

    def test_compaction_shares_are_of_the_total_and_what_does_not_fit_goes_to_the_others(self, tmp_path: Path) -> None:
        proportions = np.array([[0.7, 0.1], [0.1, 0.1]])
        path = write_proportions(tmp_path / "c.json", proportions)
        np.testing.assert_allclose(
            read_budgets(path, "compaction", Options(ratio=0.75)).shares, [[0.7, 0.1], [0.1, 0.1]]
        )
        np.testing.assert_allclose(
            read_budgets(path, "compaction", Options(ratio=0.5)).shares, [[1.0, 1 / 3], [1 / 3, 1 / 3]]
        )

    def test_a_profile_of_tangram_keeps_sinks_and_window_everywhere(self, tmp_path: Path) -> None:
        path = write_profile(tmp_path / "profile.npz", [[0.0, 0.1], [0.3, 0.0]])
        shares = read_budgets(path, "tangram", Options(ratio=0.8, context=100)).shares
        np.testing.assert_allclose(shares, [[0.1, 0.2], [0.4, 0.1]])

    def test_caches_of_a_page_group_of_tangram_are_equal(self, tmp_path: Path) -> None:
        FORMATS["tangram"].write(BUDGETS, tmp_path / "map.npz", Options())
        shares = read_budgets(tmp_path / "map.npz", "tangram", Options(ratio=BUDGETS.ratio)).shares
        large = (0.9 + 0.8 + 1.0 + 0.45) / 4
        small = (0.1 + 0.2 + 0.05 + 0.3) / 4
        np.testing.assert_allclose(shares, np.where(SHARES > 0.4, large, small), rtol=1e-5)

    def test_lu_kv_is_read_as_by_the_allocator(self, tmp_path: Path) -> None:
        shares = read_budgets(write_curve(tmp_path / "c.npy"), "lu-kv", Options(ratio=0.305)).shares
        np.testing.assert_allclose(shares, np.full(SHAPE, 0.695))

    def test_ours_is_taken_at_its_own_ratio_only(self, tmp_path: Path) -> None:
        BUDGETS.save(tmp_path / "0.525.json")
        assert read_budgets(tmp_path / "0.525.json", "json", Options()).ratio == BUDGETS.ratio
        with pytest.raises(UserError, match=r"0\.525\.json: budgets for ratio 0\.525, 0\.5 is asked for"):
            read_budgets(tmp_path / "0.525.json", "json", Options(ratio=0.5))
        np.testing.assert_array_equal(read_budgets(tmp_path, "json", Options(ratio=BUDGETS.ratio)).shares, SHARES)
        with pytest.raises(UserError, match=r"0\.5\.json: no such file"):
            read_budgets(tmp_path, "json", Options(ratio=0.5))

    @pytest.mark.parametrize(
        ("name", "options", "said"),
        [
            ("duo", Options(context=100), "does not say how much is kept in total; give ratio"),
            ("duo", Options(ratio=0.5), "of a context of unknown length; give context"),
            (
                "duo",
                Options(ratio=0.5, context=25),
                "sinks and window are 25 of 25 tokens; lower them or raise context",
            ),
            ("duo", Options(ratio=0.5, context=10**13), "context: must be a number of tokens"),
            ("compaction", Options(), "give ratio"),
            ("compaction", Options(ratio=1.0), r"ratio: must be a number in \[0, 1\), got 1.0"),
            ("compaction", Options(ratio=0.5, context=9), "context has no effect when it is read"),
            ("tangram", Options(ratio=0.5), "give context"),
            ("tangram", Options(ratio=0.5, context=10), "sinks and window are 10 of 10 tokens"),
            ("lu-kv", Options(), "give ratio"),
            ("kvzip", Options(), r"not budgets; .*profile.estimators=\[file\]"),
            ("trtllm-windows", Options(), "it cannot be read; known: json, duo, compaction, tangram, lu-kv"),
        ],
    )
    def test_nothing_is_guessed(self, name: str, options: Options, said: str, tmp_path: Path) -> None:
        makers: dict[str, Callable[[Path], Path]] = {
            "duo": write_duo,
            "compaction": write_proportions,
            "tangram": write_profile,
            "lu-kv": write_curve,
        }
        suffix = ".npy" if name == "lu-kv" else ".npz"
        path = makers.get(name, lambda path: path)(tmp_path / f"file{suffix}")
        with pytest.raises(UserError, match=said):
            read_budgets(path, name, options)


class TestExport:
    @given(arrays(np.float64, SHAPE, elements=st.floats(0.01, 1.0)))
    def test_round_trips_are_exact_where_the_format_can_express_budgets(
        self, tmp_path_factory: pytest.TempPathFactory, shares: Any
    ) -> None:
        folder = tmp_path_factory.mktemp("trips")
        budgets = Budgets.from_shares(shares)
        for name in ("json", "compaction"):
            expressed = FORMATS[name].write(budgets, folder / name, Options())
            again = read_budgets(folder / name, name, Options(ratio=budgets.ratio))
            np.testing.assert_allclose(again.shares, shares, atol=1e-9)
            assert "lost: nothing" in "\n".join(expressed.lines(budgets))

    def test_what_duo_expresses_comes_back(self, tmp_path: Path) -> None:
        expressed = FORMATS["duo"].write(BUDGETS, tmp_path / "d", Options(context=1000, sinks=10, window=90))
        n_full = int((SHARES.sum() - 8 * 0.1) / 0.9)
        assert (expressed.shares == 1.0).sum() == n_full == 3
        assert expressed.shares.mean() <= SHARES.mean()
        ratio = 1.0 - float(expressed.shares.mean())
        again = read_budgets(tmp_path / "d", "duo", Options(ratio=ratio, context=1000))
        np.testing.assert_allclose(again.shares, expressed.shares)

    def test_a_page_group_keeps_what_its_largest_member_keeps(self, tmp_path: Path) -> None:
        expressed = FORMATS["tangram"].write(BUDGETS, tmp_path / "map.npz", Options())
        np.testing.assert_array_equal(expressed.shares, np.where(SHARES > 0.4, 1.0, 0.3))
        arrays_of_map = np.load(tmp_path / "map.npz")
        assert arrays_of_map["cluster_members"].tolist() == [
            [[0, 0], [1, 1], [2, 1], [3, 1]],
            [[0, 1], [1, 0], [2, 0], [3, 0]],
        ]
        assert arrays_of_map["column_of"][3].tolist() == [3, 3]

    def test_windows_of_tensorrt_llm_are_layers_means_with_an_exact_sum(self, tmp_path: Path) -> None:
        expressed = FORMATS["trtllm-windows"].write(BUDGETS, tmp_path / "w.json", Options(context=1001))
        written = json.loads((tmp_path / "w.json").read_text())
        assert written["sink_token_length"] == 4
        assert sum(written["max_attention_window"]) == round(SHARES.mean() * 4 * 1001)
        np.testing.assert_allclose(written["max_attention_window"], SHARES.mean(1) * 1001, atol=1)
        np.testing.assert_allclose(expressed.shares[:, 0], expressed.shares[:, 1])

    def test_layers_of_vllm_are_full_where_shares_are_largest(self, tmp_path: Path) -> None:
        budgets = Budgets.from_shares([[1.0, 1.0], [0.1, 0.3], [0.2, 0.2], [0.9, 1.0]])
        expressed = FORMATS["vllm-layer-types"].write(budgets, tmp_path / "v.json", Options(context=1000))
        written = json.loads((tmp_path / "v.json").read_text())
        assert written["layer_types"] == ["full_attention", *["sliding_attention"] * 2, "full_attention"]
        assert written["sliding_window"] == 175  # what the total leaves
        assert expressed.shares.mean() <= budgets.shares.mean() + 1e-9
        FORMATS["vllm-layer-types"].write(budgets, tmp_path / "v.json", Options(context=1000, window=400))
        assert json.loads((tmp_path / "v.json").read_text()) == {
            "layer_types": ["full_attention", *["sliding_attention"] * 3],
            "sliding_window": 400,
        }

    def test_the_command_says_the_rule_and_what_was_lost(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        BUDGETS.save(tmp_path / "b.json")
        out = tmp_path / "windows.json"
        command = ["export", "--budgets", str(tmp_path / "b.json"), "--to", "trtllm-windows", "--output", str(out)]
        assert main([*command, "--context", "1000"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert [line.partition(":")[0] for line in shown] == [str(out), "rule", "lost", "not in the file"]
        assert "shares differ by 0.3125 on average, by 0.4750 at most (layer 2, KV head 0)" in shown[2]

    @pytest.mark.parametrize(
        ("name", "options", "said"),
        [
            ("duo", Options(context=100, sinks=30, window=30), r"are 0\.600 of 100 tokens, the budgets keep 0\.475"),
            ("trtllm-windows", Options(context=8), r"layer 1 keeps 4 of 8 tokens|no more than the 4 sinks"),
            ("vllm-layer-types", Options(context=100, window=60), "less than the window"),
        ],
    )
    def test_what_cannot_be_expressed_is_refused(self, name: str, options: Options, said: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=said):
            FORMATS[name].write(BUDGETS, tmp_path / "out", options)
        assert not (tmp_path / "out").exists()


def npz(**fields: Any) -> bytes:
    content = io.BytesIO()
    np.savez(content, **fields)
    return content.getvalue()


def bomb() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ratio_per_head.npy", bytes(65 * 2**20))
    return content.getvalue()


def profile(**changed: Any) -> bytes:
    """A profile of TANGRAM that says how many tokens are sinks and window, but for what is changed."""
    meta = np.frombuffer(b'{"window_size": 6}', np.uint8)
    return npz(**{"ratio_per_head": GATES[None], "sample_meta": np.array([[100, 4]]), "meta": meta, **changed})


def zipped(name: str, content: bytes, compression: int = zipfile.ZIP_STORED, *, damaged: bool = False) -> bytes:
    """An archive of one member, whose compressed content may be damaged."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as written:
        written.writestr(name, content)
    made = bytearray(archive.getvalue())
    start = 30 + len(name) + 9  # after the header of the member, and that of LZMA
    for place in range(start, start + 40 * damaged):
        made[place] ^= 0x5A
    return bytes(made)


def claiming(shape: str) -> bytes:
    """The header of an array of another size than what follows it."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)


MEMBERS = np.stack(np.divmod(np.arange(8).reshape(2, 4), 2), -1)
GOOD_MAP = {"rank_score": GATES, "cluster_members": MEMBERS}
BAD: dict[str, tuple[str, bytes, str]] = {
    "no json": ("compaction", b'{"L0H0": ', "not JSON"),
    "deep json": ("compaction", b"[" * 100_000, "not JSON"),
    "a list": ("compaction", b"[1]", "expected a JSON object, got list"),
    "another key": ("compaction", b'{"L0": 1}', "'L0': expected keys such as L0H0"),
    "a cache is missing": ("compaction", b'{"L0H0": 0.5, "L1H1": 0.5}', "2 keys are not one for each of 2 layers x 2"),
    "nothing": ("compaction", b"{}", "0 keys"),
    "sum": ("compaction", b'{"L0H0": 0.2, "L0H1": 0.2}', "shares: they must sum to 1, got 0.4"),
    "NaN": ("compaction", b'{"L0H0": NaN, "L0H1": 0.5}', "shares: every value must be a finite number"),
    "huge": ("compaction", b'{"L0H0": 1' + b"0" * 400 + b', "L0H1": 0}', "shares: "),
    "a text": ("compaction", b'{"L0H0": "1"}', "shares: expected numbers"),
    "a truth value": ("compaction", b'{"L0H0": true, "L0H1": 0.0}', "shares: every value must be a number"),
    "latin": ("compaction", b"\xff\xfe{}", "not a readable text file"),
    "no npz": ("tangram", b"PK\x03\x04nonsense", "not a readable .npz file"),
    "cut": ("tangram", npz(ratio_per_head=GATES[None])[:-40], "not a readable .npz file"),
    "bomb": ("tangram", bomb(), "too many for budgets"),
    "pickle": ("tangram", npz(ratio_per_head=np.array([[[{}]]], object)), "not a readable .npz file"),
    "another npz": ("tangram", npz(gates=GATES), "ratio_per_head is missing; give a profile or a cluster map"),
    "shape": ("tangram", npz(ratio_per_head=GATES), r"ratio_per_head: expected \[base ratios, layers, KV heads\]"),
    "dtype": ("tangram", npz(ratio_per_head=np.full((1, 2, 2), "a")), "ratio_per_head: expected numbers"),
    "negative": ("tangram", npz(ratio_per_head=-GATES[None]), r"ratio_per_head: every value must be .* in \[0, 1\]"),
    "two ratios": ("tangram", npz(ratio_per_head=np.stack([GATES, GATES])), "2 base ratios; leave the one"),
    "no window": ("tangram", npz(ratio_per_head=GATES[None]), "does not say how many tokens are its window"),
    "no number of sinks": ("tangram", profile(sample_meta=np.array([[1, np.nan]])), "tokens are its sinks; give sinks"),
    "sinks are no array": ("tangram", zipped("sample_meta", b"4"), "sample_meta: expected an array, got other content"),
    "huge window": (
        "tangram",
        profile(meta=np.frombuffer(b'{"window_size": 1' + b"0" * 400 + b"}", np.uint8)),
        "tokens are its window; give window",
    ),
    "damaged lzma": (
        "tangram",
        zipped("ratio_per_head.npy", bytes(range(256)), zipfile.ZIP_LZMA, damaged=True),
        "not a readable .npz file",
    ),
    "open brackets": ("tangram", zipped("ratio_per_head.npy", claiming("(" * 60)), "not a readable .npz file"),
    "huge number": (
        "tangram",
        profile(ratio_per_head=np.full((1, 2, 2), np.longdouble("1e4000"))),
        "ratio_per_head: every value must be a finite number",
    ),
    "halves of members": (
        "tangram",
        npz(**{**GOOD_MAP, "cluster_members": MEMBERS + 0.5}),
        "cluster_members: expected whole numbers",
    ),
    "members": ("tangram", npz(**{**GOOD_MAP, "cluster_members": MEMBERS * 2}), "is not in rank_score"),
    "members twice": ("tangram", npz(**{**GOOD_MAP, "cluster_members": MEMBERS * 0}), "every KV cache must be in one"),
    "no npy": ("lu-kv", b"nonsense", "not a readable .npy file"),
    "claims": ("lu-kv", claiming("(99, 1000000, 1000000)"), "not a readable .npy file"),
    "open curve": ("lu-kv", claiming("(" * 60), "not a readable .npy file"),
    "flat curve": ("lu-kv", claiming("(8,)"), r"expected \[99, layers, KV heads\], got shape \[8\]"),
    "no gates": ("duo", b"\n", "gates: expected"),
    "a comment": ("duo", b"# gates\n", "not a table of numbers separated by tabs"),
    "no table": ("duo", b"a\tb\n", "not a table of numbers separated by tabs"),
    "ragged": ("duo", b"1\t2\n1\n", "not a table of numbers separated by tabs"),
    "gates": ("duo", b"0.5\t1.5\n", r"gates: every value must be a finite number in \[0, 1\]"),
    "no config": ("duo", b"0.5\t0.5\n", "no config.json beside it says how many tokens stay; give sinks and window"),
    "not ours": ("json", b"{}", "it has no schema_version"),
}


@pytest.mark.filterwarnings("error")  # they would be lines of their own
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_that_names_it_and_writes_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content, said = BAD[case]
    path, out = tmp_path / "given", tmp_path / "out.json"
    path.write_bytes(content)
    context = {"duo": ["--context", "100"], "tangram": ["--context", "100"]}.get(name, [])
    context = [] if "members" in case else context
    ratio = [] if name == "json" else ["--ratio", "0.5"]
    assert main(["import", str(path), "--from", name, *ratio, *context, "--output", str(out)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith(f"baklava import: error: {path}: ")
    with pytest.raises(UserError, match=said):
        raise UserError(shown.err)
    assert not out.exists()


def test_a_name_of_two_lines_is_shown_on_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["import", str(tmp_path / "a\nb"), "--from", "compaction", "--output", str(tmp_path / "out.json")]
    assert main(command) == 2
    assert capsys.readouterr().err == f"baklava import: error: {tmp_path}/a\\nb: no such file\n"


def test_a_model_of_an_unprintable_name_is_nameless(tmp_path: Path) -> None:
    path = write_duo(tmp_path, model_name="a\ud800")
    assert read_budgets(path, "duo", Options(ratio=0.5, context=100)).model == ""


@pytest.mark.parametrize("kind", ["missing", "loop", "folder"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "given"
    if kind == "loop":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=r"given: (no such file|not a readable file)"):
        read_budgets(path, "compaction", Options(ratio=0.5))


class TestAllocator:
    def test_origin_and_parameters_are_kept(self, tmp_path: Path) -> None:
        path = write_proportions(tmp_path / "c.json", [[0.75, 0.25]])
        allocator = BudgetsFile(name="theirs", path=str(path), format="compaction")

        class Context:
            profile, ratios = flat_profile([1.0, 1.0]), (0.5, 0.75)

        fitted = allocator.fit(Context()).budgets  # type: ignore[arg-type]
        np.testing.assert_allclose(fitted[0.75].shares, [[0.375, 0.125]])
        assert (fitted[0.75].model, fitted[0.75].allocator) == ("fake", "theirs")
        assert fitted[0.75].provenance["imported"]["format"] == "compaction"
        assert fitted[0.75].parameters["path"] == str(path)

    def test_another_shape_than_the_model_has_is_refused(self, tmp_path: Path) -> None:
        path = write_proportions(tmp_path / "c.json", [[0.75, 0.25]])
        with pytest.raises(UserError, match=r"c\.json is \[layers, KV heads\] \[1, 2\], the profile asks for \[1, 3\]"):
            BudgetsFile(name="b", path=str(path), format="compaction").shares(flat_profile([1.0, 1.0, 1.0]), 0.5)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({}, "path: none given; set allocators.b.path"),
            ({"path": "nowhere"}, "path: no such file: nowhere"),
            ({"path": "x", "format": "kvpress"}, "format kvpress: it cannot be read"),
            ({"path": "x", "context": 9}, "format json: context has no effect"),
        ],
    )
    def test_mistakes_are_found_before_the_first_job(self, settings: Any, said: str) -> None:
        with pytest.raises(UserError, match=said):
            BudgetsFile(name="b", **settings).check()
