"""Models: the reference models that come with the package, and loading any other."""

from __future__ import annotations

from pathlib import Path

from baklava.errors import UserError
from baklava.system.files import expand_home

REFERENCE = "reference:"

_FOLDER = Path(__file__).parent / "reference"


def reference_model_path(name: str) -> Path:
    """Folder of a reference model, for `from_pretrained`. Raises `UserError` for an unknown name."""
    folder = _FOLDER / name
    known = sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))
    if name not in known:
        raise UserError(f"no reference model {name!r}; known: {', '.join(known) or 'none'}")
    return folder


def model_folder(path: str) -> Path | None:
    """The folder of a model on this machine, whether or not it exists; None for a hub id.

    Raises `UserError` for an unknown reference model.
    """
    if path.startswith(REFERENCE):
        return reference_model_path(path.removeprefix(REFERENCE))
    folder = expand_home(path)
    return folder if path.startswith(("/", ".", "~")) or path.count("/") > 1 or folder.exists() else None


def resolve(path: str) -> str:
    """The folder or hub id to load a model from."""
    return str(model_folder(path) or path)
