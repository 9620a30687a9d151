"""Scores of heads that others published: their formats, and files that are wrong."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from baklava.errors import UserError
from baklava.importance.scores_file import read_scores

SCORES = torch.tensor([[0.5, 0.25], [1.0, 0.0]])


def read(path: Path) -> Any:
    return read_scores(path, n_layers=2, n_kv_heads=2, n_q_heads=4)


def test_scores_of_kv_heads_hold_for_their_query_heads(tmp_path: Path) -> None:
    torch.save(SCORES.half(), tmp_path / "kvzip.pt")
    save_file({"scores": SCORES.bfloat16()}, tmp_path / "s.safetensors")
    (tmp_path / "table.json").write_text(json.dumps(SCORES.tolist()))
    for name in ("kvzip.pt", "s.safetensors", "table.json"):
        np.testing.assert_array_equal(read(tmp_path / name), [[0.5, 0.5, 0.25, 0.25], [1.0, 1.0, 0.0, 0.0]])


def test_scores_of_query_heads_are_means_over_samples(tmp_path: Path) -> None:
    values = {f"{layer}-{head}": [layer, head, 3.0] for layer in range(2) for head in range(4)}
    (tmp_path / "headkv.json").write_text(json.dumps(values))
    expected = [[(layer + head + 3) / 3 for head in range(4)] for layer in range(2)]
    np.testing.assert_allclose(read(tmp_path / "headkv.json"), expected, rtol=1e-6)


class Bomb:
    """Code in a pickle: it would make a folder."""

    def __reduce__(self) -> Any:
        return (Path.mkdir, (Path("executed"),))


def saved(value: Any) -> Any:
    return lambda path: torch.save(value, path)


def save_bomb(path: Path) -> None:
    torch.save(torch.zeros(65 * 2**18), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


BAD = {
    "shape.pt": (saved(torch.ones(2, 3)), r"\[2, 3\] are neither \[layers, KV heads\] \[2, 2\] nor .* \[2, 4\]"),
    "axes.pt": (saved(torch.ones(4)), r"scores: expected \[layers, heads\], got shape \[4\]"),
    "nan.pt": (saved(SCORES * float("nan")), "scores: every value must be a finite number of at least 0"),
    "negative.pt": (saved(-SCORES), "scores: every value must be a finite number of at least 0"),
    "complex.pt": (saved(SCORES * 1j), "expected one tensor"),
    "dict.pt": (saved({"a": SCORES}), "expected one tensor, got dict"),
    "code.pt": (saved(Bomb()), "not a tensor that can be read without executing it"),
    "pickle.pt": (lambda path: path.write_bytes(pickle.dumps(Bomb())), "which is not read; save it anew"),
    "pickle.pkl": (lambda path: path.write_bytes(pickle.dumps(Bomb())), "scores of heads are read from a .pt file"),
    "expanded.pt": (saved(torch.zeros(1).expand(10**5, 10**5)), "scores: 10000000000 are too many"),
    "meta.pt": (saved(torch.ones(2, 2, device="meta")), "expected one tensor of real numbers"),
    "sparse.pt": (saved(SCORES.to_sparse()), "expected one tensor of real numbers"),
    "bomb.pt": (save_bomb, "too many for budgets"),
    "complex.safetensors": (lambda path: save_file({"a": SCORES * 1j}, path), "expected one tensor of real numbers"),
    "huge.json": (lambda path: path.write_text("[[1e39, 1], [1, 1]]"), "scores: 1e.39 is too large for float32"),
    "cut.safetensors": (lambda path: path.write_bytes(b"\x10" + bytes(20)), "not a readable safetensors file"),
    "two.safetensors": (lambda path: save_file({"a": SCORES, "b": SCORES + 1}, path), r"got 2 \(a, b\)"),
    "key.json": (lambda path: path.write_text('{"L0H0": 1}'), "'L0H0': expected keys such as 0-0"),
    "some.json": (lambda path: path.write_text('{"0-0": 1, "1-1": 1}'), "2 keys are not one for each of 2 layers"),
    "text.json": (lambda path: path.write_text('{"0-0": ["a"]}'), "0-0: expected numbers"),
    "no.json": (lambda path: path.write_text("[[1,"), "not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_and_nothing_is_executed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, said = BAD[name]
    write(tmp_path / name)
    with pytest.raises(UserError, match=said) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()
