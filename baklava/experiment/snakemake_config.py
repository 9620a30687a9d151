"""The experiment and the overrides of `snakemake --config experiment=NAME overrides="KEY=VALUE ..."`, as typed.

Snakemake parses the values of `--config` as YAML: 2024_11_25 becomes a number, a text ends at ` #`, and the quotes
around it are dropped. It also keeps what was typed (`workflow.config_settings.config_args`), which is read here.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence

from baklava.errors import UserError
from baklava.experiment.overrides import split

KEYS = ("experiment", "overrides")
DEFAULT = "demo"
_PACKED = "packed:"


def overrides_of(settings: Mapping[str, object], typed: Sequence[str], parsed: Mapping[str, object]) -> list[str]:
    """Hydra overrides, the experiment first.

    `settings` are all that apply, including those of a configuration file or of a workflow that uses this one as a
    module; `typed` are the arguments of `--config`, and `parsed` is what Snakemake made of them. Raises `UserError` for
    an unknown key, and for a value in a file that is not a text.
    """
    unknown = sorted(set(settings) - set(KEYS))
    if unknown:
        raise UserError(f'--config {unknown[0]}: known keys are experiment and overrides="KEY=VALUE ..."')
    raw = dict(argument.split("=", 1) for argument in typed if "=" in argument)
    given = {key: raw[key] if key in raw and parsed.get(key) == value else value for key, value in settings.items()}
    for key, value in given.items():
        if not isinstance(value, str | None):
            raise UserError(f"--config {key}: {value!r} is not a text; put it in quotes in the configuration file")
    experiment, overrides = (str(given.get(key) or "") for key in KEYS)
    if overrides.startswith(_PACKED):
        return list(json.loads(base64.urlsafe_b64decode(overrides.removeprefix(_PACKED))))
    return [f"experiment={experiment or DEFAULT}", *split(_unwrapped(overrides))]


def packed(typed: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The arguments of `--config` for the processes that Snakemake starts for its jobs on a cluster.

    Snakemake puts them into a shell command without escaping quotes, backslashes and dollars, so such ones are encoded.
    """
    ours = [argument for argument in typed if argument.partition("=")[0] in KEYS]
    if not set("".join(ours)) & set("'\"\\$`"):
        return list(typed)
    return [*(argument for argument in typed if argument not in ours), encoded(overrides)]


def encoded(overrides: Sequence[str]) -> str:
    """One argument of `--config` with overrides, the experiment first, that no parser or shell can change."""
    content = base64.urlsafe_b64encode(json.dumps(list(overrides)).encode()).decode()
    return f"overrides={_PACKED}{content}"


def _unwrapped(text: str) -> str:
    """Drop quotes around all overrides together, as in `'overrides="a=1 b=2"'`: a key cannot begin with one."""
    match = re.fullmatch(r"\s*(['\"])(.*)\1\s*", text, re.DOTALL)
    return match[2] if match else text
