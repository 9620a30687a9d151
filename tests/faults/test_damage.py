"""Files with a flipped bit or a missing end: refused in a line that names them, or read as what they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_experiment import write_model
from synthetic_results import cell_records, write_records, write_timings

from baklava.analysis.headline import Headline
from baklava.budgets import Budgets
from baklava.calibration.prompts import Calibration, Prompt
from baklava.errors import UserError
from baklava.evaluation import record_schema, timings
from baklava.experiment.components import ModelConfig
from baklava.importance.profile import Profile
from baklava.models.load import load_model, load_tokenizer
from baklava.models.weights import weight_bytes
from baklava.system.append_log import AppendLog
from baklava.system.parquet import read_parquet


@dataclass(frozen=True)
class Kind:
    """A kind of file: how one is written, and everything that reading it gives, as text."""

    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], str]
    value: bytes = b""  # of which one bit can change without breaking the format


def profile_text(path: Path) -> str:
    one = Profile.load(path)
    heads = {name: values.tolist() for name, values in one.head_importance.items()}
    return repr((one.model, one.n_kv_heads, heads, one.layer_importance.tolist(), one.meta))


def budgets_text(path: Path) -> str:
    one = Budgets.load(path)
    return repr((one.shares.tolist(), one.ratio, one.model, one.allocator, one.parameters, one.provenance))


def records_text(path: Path) -> str:
    table = read_parquet(path, record_schema.COLUMNS, schema=record_schema.SCHEMA, what="records", hint="x")
    return repr(table.to_pylist())


def timings_text(path: Path) -> str:
    return repr(timings.timings([path]).to_dict())


def store_text(path: Path) -> str:
    """What is damaged is not there; what is there is right."""
    store = AppendLog(path)
    found = {key: store[key] for key in ENTRIES if key in store}
    store.close()
    assert found.items() <= ENTRIES.items()
    return "as it should be"


def write_store(path: Path) -> None:
    store = AppendLog(path)
    for key, value in ENTRIES.items():
        store.add({key: value})
    store.close()


ENTRIES: dict[str, Any] = {"a": {"score": 0.5}, "b": {"score": 0.25, "prediction": " 12é\n"}, "c": {"score": 0.75}}
IMPORTANCE = np.random.default_rng(0).random((2, 3, 4), dtype=np.float32)
PROMPT = Prompt("t", 0, "Some context. ", "A question?", " An answer.", look_back=(0, 1))
KINDS = [
    Kind(
        "profile.safetensors",
        Profile("m", 2, {"e": IMPORTANCE}, IMPORTANCE[..., 0], {"path": "x", "settings": {"window": 0.1}}).save,
        profile_text,
        IMPORTANCE[..., 0].tobytes(),
    ),
    Kind(
        "budgets.json",
        Budgets.from_shares([[0.75, 0.25], [0.625, 0.375]], model="m", parameters={"slope": 2.0}).save,
        budgets_text,
        b"0.75",
    ),
    Kind(
        "calibration.json",
        Calibration((PROMPT,), (PROMPT,)).save,
        lambda path: repr(asdict(Calibration.load(path))),
        b"An answer",
    ),
    Kind("records.parquet", lambda path: write_records(path, cell_records([1.0, 0.5, 0.0])), records_text, b"vt"),
    Kind(
        "timings.parquet",
        lambda path: write_timings(path, cell_records([1.0, 0.5, 0.0])),
        timings_text,
        np.float64(0.25).tobytes(),
    ),
    Kind(
        "headline.json",
        Headline(margin=0.02, confidence=0.95, n_bootstrap=100, seed=0, models={}).save,
        lambda path: repr(Headline.load(path)),
        b"0.95",
    ),
    Kind("store.lines", write_store, store_text),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_named_or_harmless(folder: Path, kind: Kind, data: st.DataObject) -> None:
    path = folder / kind.name
    path.unlink(missing_ok=True)
    kind.write(path)
    expected, content = kind.read(path), bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1), label="place")
    if data.draw(st.booleans(), label="cut"):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255), label="flipped bits")
    path.write_bytes(content)
    found, complaint = read_or_complaint(kind, path)
    if complaint:
        assert complaint.startswith(f"{path}: ")
        assert "\n" not in complaint
    else:
        assert found == expected


def read_or_complaint(kind: Kind, path: Path) -> tuple[str, str]:
    try:
        return kind.read(path), ""
    except UserError as error:
        return "", str(error)


@pytest.mark.parametrize("kind", KINDS[:-1], ids=lambda kind: kind.name)
def test_a_changed_value_is_refused(folder: Path, kind: Kind) -> None:
    """Not only bytes that break the format: one digit, one bit of a number."""
    path = folder / f"changed-{kind.name}"
    kind.write(path)
    content = path.read_bytes()
    place = content.index(kind.value) + len(kind.value) - 1
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(UserError, match=r"checksum|fingerprint"):
        kind.read(path)


def test_json_written_by_hand_needs_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "budgets.json"
    Budgets.from_shares([[0.75, 0.25]]).save(path)
    values = json.loads(path.read_text())
    edited = {**values, "shares": [[0.5, 0.5]]}
    path.write_text(json.dumps(edited))
    with pytest.raises(UserError, match=r"does not match its checksum; .* or remove its key sha256"):
        Budgets.load(path)
    path.write_text(json.dumps({key: value for key, value in edited.items() if key != "sha256"}))
    assert Budgets.load(path).shares.tolist() == [[0.5, 0.5]]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    model = write_model(tmp_path_factory.mktemp("model") / "m")
    return ModelConfig(name="m", path=str(model), dtype="float32")


class TestModel:
    @pytest.fixture
    def damaged(self, config: ModelConfig, request: pytest.FixtureRequest) -> Any:
        """Change a file of the model for one test."""
        saved: dict[Path, bytes] = {}

        def change(name: str, how: Callable[[bytes], bytes]) -> None:
            path = Path(config.path) / name
            saved[path] = path.read_bytes()
            path.write_bytes(how(saved[path]))

        yield change
        for path, content in saved.items():
            path.write_bytes(content)

    @pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
    def test_weights_that_were_cut_short_are_refused(self, config: ModelConfig, damaged: Any, keep: int) -> None:
        damaged("model.safetensors", lambda content: content[:keep])
        with pytest.raises(UserError, match=r"^model m: cannot load .*/m: ") as caught:
            load_model(config)
        assert "\n" not in str(caught.value)

    def test_a_damaged_header_is_refused(self, config: ModelConfig, damaged: Any) -> None:
        damaged("model.safetensors", lambda content: content[:10] + b"\xff" + content[11:])
        with pytest.raises(UserError, match=r"^model m: cannot load "):
            load_model(config)
        with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
            weight_bytes(config)

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
    def test_a_damaged_tokenizer_is_refused(self, config: ModelConfig, damaged: Any, content: bytes) -> None:
        damaged("tokenizer.json", lambda _: content)
        with pytest.raises(UserError, match=r"^model m: cannot load the tokenizer from ") as caught:
            load_tokenizer(config)
        assert "\n" not in str(caught.value)
