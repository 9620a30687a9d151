"""Fingerprints of what determines a result, so that finished work is used again exactly where it still holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

# Of a large file so many blocks, evenly spaced, stand for the whole: reading 16 GB at every start would take longer
# than some evaluations.
BLOCKS, BLOCK = 64, 2**16


def fingerprint(*parts: Any) -> str:
    """Hex digest of plain values (JSON), the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# Weights, settings, tokenizers, chat templates, and code that comes with a model.
_OF_A_MODEL = (".json", ".safetensors", ".bin", ".model", ".tiktoken", ".txt", ".jinja", ".py")


def fingerprint_folder(folder: Path, leave_out: Collection[Path] = ()) -> str:
    """Of a model's files by name, size and content; of files above 4 MiB a sample of the content."""
    digest = hashlib.sha256()
    some = (path for path in folder.iterdir() if path.suffix in _OF_A_MODEL and path.is_file())
    for path in sorted(path for path in some if path not in leave_out):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= BLOCKS * BLOCK:
                digest.update(file.read())
                continue
            for i in range(BLOCKS):
                file.seek(i * (size - BLOCK) // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:32]
