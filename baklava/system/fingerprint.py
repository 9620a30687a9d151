"""Fingerprints of what determines a result, so that finished work is used again exactly where it still holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

# A large file is represented by evenly spaced blocks: reading 16 GB at every start would take longer than some
# evaluations.
N_BLOCKS, BLOCK_BYTES = 64, 2**16


def fingerprint(*parts: Any) -> str:
    """Digest plain values (JSON) to a hexadecimal string that is the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# Weights, settings, tokenizers, chat templates, and code that comes with a model.
_MODEL_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".tiktoken", ".txt", ".jinja", ".py")


def fingerprint_folder(folder: Path, leave_out: Collection[Path] = ()) -> str:
    """Digest the name, size and content of a model's files; of files above 4 MiB only a sample of the content."""
    paths = (path for path in folder.iterdir() if path.suffix in _MODEL_SUFFIXES and path.is_file())
    return _fingerprint_files(sorted(path for path in paths if path not in leave_out))


def fingerprint_file(path: Path) -> str:
    """The same of a single file that holds all of a model."""
    return _fingerprint_files([path])


def _fingerprint_files(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= N_BLOCKS * BLOCK_BYTES:
                digest.update(file.read())
                continue
            for i in range(N_BLOCKS):
                file.seek(i * (size - BLOCK_BYTES) // (N_BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()[:32]
