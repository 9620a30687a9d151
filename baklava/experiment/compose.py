"""Hydra composes the configuration from `conf/` and overrides; mistakes become one line that names the key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from baklava.errors import UserError
from baklava.experiment.choices import GROUPS, check_chosen_once, without_replaced
from baklava.experiment.components import TaskConfig
from baklava.experiment.fields import FrozenModel
from baklava.experiment.old_names import with_new_names
from baklava.experiment.overrides import apply, as_text, named, readable
from baklava.experiment.schema import ExperimentConfig

# What a wheel brings along (setup.py): conf/, workflow/ and the Snakefile. The repository does not have this folder.
WORKFLOW_FILES = Path(__file__).resolve().parents[1] / "workflow_files"


def conf_folder() -> Path:
    """The Hydra configuration: `conf/` of the current folder, else that of the installed wheel or the repository."""
    repository = Path(__file__).resolve().parents[2]
    for folder in (Path.cwd() / "conf", WORKFLOW_FILES / "conf", repository / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(
        f"no configuration: neither ./conf/config.yaml nor {repository / 'conf/config.yaml'} is there; run from the "
        "repository"
    )


SECTIONS = (*GROUPS, "validate.calibrations")  # mappings of names, which may hold dots
_NO_TEXT = ("string_type", "path_type")  # what pydantic says of another value where a text belongs


_NO_LIST = ("tuple_type", "list_type")
_LISTS = {"ratios": "[0,0.5]", "validate.lengths": "[512,1024]", "profile.estimators": "[eviction_shift]"}


def _free_mappings(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Patterns for the settings that are mappings with keys of the user's own, such as `claims.gain_at`."""
    patterns = []
    for name, field in model.model_fields.items():
        key = prefix + re.escape(field.alias or name)
        for kind in get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,):
            inner = get_args(kind)[1] if get_origin(kind) is dict else kind
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                patterns += _free_mappings(inner, key + (r"\." if inner is kind else r"\..+\."))
            elif get_origin(kind) is dict:
                patterns.append(key)
    return patterns


MAPPINGS = re.compile("|".join(_free_mappings(ExperimentConfig)))


def _hydra_message(error: Exception) -> str:
    """Hydra's message on one line, without the folders that it searched; the remedy is on its second line."""
    return " ".join(str(error).split("Config search path")[0].split()) or type(error).__name__


def check(model: type[FrozenModel], values: Any, *, source: str) -> Any:
    """Validate `values` as `model`. Raises `UserError`, in one line, for the first thing wrong with them."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(name) for name in first["loc"]) or "(top level)"
        if first["type"] == "missing" and key in GROUPS:
            raise UserError(f"{source}: {key}: none chosen; choose one with {GROUPS[key]}=NAME") from None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] in _NO_LIST:
            message = f"expected a list such as {_LISTS.get(key, '[a,b]')}"
        elif first["type"] == "value_error" and re.match(r"[a-z][\w.-]*: ", message):  # names the key below this one
            message, key = message.partition(": ")[2], ".".join([*map(str, first["loc"]), message.partition(": ")[0]])
        given = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
        if first["type"] in _NO_TEXT:
            given += "; put quotes around a text that looks like a number, true or null"
        more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        raise UserError(f"{source}: {key}: {message}{given}{more}") from None


def compose(overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Compose `conf/` with Hydra overrides and check the result. Raises `UserError` that names the key."""
    check_chosen_once(overrides)
    overrides = with_new_names(overrides)
    folder = conf_folder()
    values = without_replaced(_compose(folder, "config", overrides), overrides)
    texts = _with_texts(overrides, values)
    if texts != list(overrides):
        values = without_replaced(_compose(folder, "config", texts), texts)
    return check(ExperimentConfig, values, source="config")


def _with_texts(overrides: Sequence[str], values: Any) -> list[str]:
    """The overrides with quotes around what looks like a number, a truth value or null where a text belongs."""
    texts = list(overrides)
    try:
        ExperimentConfig.model_validate(values)
    except ValidationError as error:
        for mistake in error.errors():
            if mistake["type"] in _NO_TEXT:
                *keys, last = mistake["loc"]
                item = last if isinstance(last, int) else None
                texts = as_text(texts, ".".join(map(str, keys if item is not None else mistake["loc"])), item)
    return texts


def compose_task(name: str) -> TaskConfig:
    """The task of `conf/task/<name>.yaml`. Raises `UserError` for an unknown one."""
    folder = conf_folder()
    known = _choices(folder / "task")
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.5) or known
        raise UserError(f"no task {name!r} in {folder / 'task'}; try {', '.join(near)}")
    [values] = _compose(folder, f"task/{name}", ())["tasks"].values()
    return check(TaskConfig, values, source=f"task {name}")


def _choices(folder: Path) -> list[str]:
    """The names of all files in a folder and below; those with an underscore are shared by several."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("[!_]*.yaml"))


def _near_choices(folder: Path, group: str, name: str) -> str:
    """What to say of a choice that there is none of: the nearest ones, those in subfolders among them."""
    known, wanted = {choice.replace("/", "_"): choice for choice in _choices(folder / group)}, name.replace("/", "_")
    near = [choice for flat, choice in known.items() if flat.startswith(wanted)][:3]
    near = near or [known[flat] for flat in get_close_matches(wanted, known, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def compose_training(model: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The training recipe of a reference model as plain values. Raises `UserError` for an unknown model or key."""
    folder = conf_folder() / "training"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if model not in known:
        raise UserError(f"no training recipe for {model!r}; known: {', '.join(known)}")
    return _compose(folder, model, overrides)


def _compose(folder: Path, name: str, overrides: Sequence[str]) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import GrammarParseError, InterpolationResolutionError

    GlobalHydra.instance().clear()
    overrides, for_names = named(readable(overrides, folder), SECTIONS, MAPPINGS)
    try:
        with initialize_config_dir(str(folder), version_base="1.3", job_name="baklava"):
            composed = hydra_compose(name, overrides=overrides)
        for override in for_names:
            apply(override, composed, SECTIONS, MAPPINGS)
        return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OverrideParseException as error:
        raise UserError(f"config: {error.override}: {_hydra_message(error)}") from None
    except Exception as error:  # odd overrides make Hydra fail in many ways, assertions among them
        if unknown := re.match(r"Could not override '([^']+)'", str(error)):
            raise UserError(_unknown_key(unknown[1])) from None
        hint = ""
        if missing := re.search(r"Could not find '([^'/]+)/([^']+)'", str(error)):
            hint = _near_choices(folder, *missing.groups())
        if isinstance(error.__cause__ or error, GrammarParseError | InterpolationResolutionError):
            hint = "; write \\${ for ${ where no other value is meant"
        elif "value in defaults" in str(error):
            hint = "; put quotes around a choice that looks like a number"
        raise UserError(f"config ({folder}): {_hydra_message(error)}{hint}") from None


def _unknown_key(key: str) -> str:
    """What to say of a key that no setting has: the nearest ones."""
    keys, last = _keys(ExperimentConfig), key.rpartition(".")[2]
    near = [name for name in keys if name.rpartition(".")[2] == last]  # the right word in a wrong place
    near = near[:3] or get_close_matches(key, keys, n=3, cutoff=0.6)
    return f"config: {key}: there is no such key" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The keys of all settings, those within others with a dot, as they are written; and the groups of choices."""
    keys = [] if prefix else list(GROUPS.values())
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        keys.append(key)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation, f"{key}.")
    return keys
