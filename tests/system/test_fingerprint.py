"""Fingerprints change with what they stand for, and with nothing else."""

from __future__ import annotations

from pathlib import Path

from baklava.system.fingerprint import BLOCK_BYTES, N_BLOCKS, fingerprint, fingerprint_folder


def test_order_of_keys_does_not_matter_and_values_do() -> None:
    assert fingerprint({"a": 1, "b": [2.0]}) == fingerprint({"b": [2.0], "a": 1})
    assert len({fingerprint(*parts) for parts in ([1], ["1"], [1.5], [[1]], [1, 1], [None], [True])}) == 7


def test_a_folder_is_its_files_wherever_it_lies(tmp_path: Path) -> None:
    prints = []
    for place in ("here", "there"):
        folder = tmp_path / place
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(BLOCK_BYTES * N_BLOCKS + 5))
        (folder / "README.md").write_text(place)
        prints.append(fingerprint_folder(folder))
    assert prints[0] == prints[1]
    with (tmp_path / "there" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert fingerprint_folder(tmp_path / "there") != prints[0]
    for name in ("pytorch_model.bin", "chat_template.jinja", "modeling_own.py"):
        before = fingerprint_folder(tmp_path / "here")
        (tmp_path / "here" / name).write_text("x")
        assert fingerprint_folder(tmp_path / "here") != before
        (tmp_path / "here" / name).unlink()
    (tmp_path / "here" / "config.json").write_text("[]")
    assert fingerprint_folder(tmp_path / "here") != prints[0]
