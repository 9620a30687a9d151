"""What `snakemake --config experiment=NAME overrides="KEY=VALUE ..."` asks for, as it was typed.

Snakemake takes the values of `--config` for YAML: it makes a number of 2024_11_25, ends a text at ` #` and drops the
quotes at its ends. What was typed is kept beside (`workflow.config_settings.config_args`), so that is read instead.
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

    `settings` are all that hold, those of a configuration file or of a workflow that uses this one as a module too;
    `typed` are the arguments of `--config`, and `parsed` what Snakemake made of them. Raises `UserError` for an unknown
    key, and for a value of a file that is no text.
    """
    unknown = sorted(set(settings) - set(KEYS))
    if unknown:
        raise UserError(f'--config {unknown[0]}: known keys are experiment and overrides="KEY=VALUE ..."')
    raw = dict(one.split("=", 1) for one in typed if "=" in one)
    given = {key: raw[key] if key in raw and parsed.get(key) == value else value for key, value in settings.items()}
    for key, value in given.items():
        if not isinstance(value, str | None):
            raise UserError(f"--config {key}: {value!r} is not a text; put it in quotes in the configuration file")
    experiment, some = (str(given.get(key) or "") for key in KEYS)
    if some.startswith(_PACKED):
        return list(json.loads(base64.urlsafe_b64decode(some.removeprefix(_PACKED))))
    return [f"experiment={experiment or DEFAULT}", *split(_unwrapped(some))]


def packed(typed: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The arguments of `--config` for the processes that Snakemake starts for its jobs on a cluster.

    It puts them into a command line of the shell without regard to quotes, backslashes and dollars in them.
    """
    ours = [one for one in typed if one.partition("=")[0] in KEYS]
    if not set("".join(ours)) & set("'\"\\$`"):
        return list(typed)
    content = base64.urlsafe_b64encode(json.dumps(list(overrides)).encode()).decode()
    return [*(one for one in typed if one not in ours), f"overrides={_PACKED}{content}"]


def _unwrapped(text: str) -> str:
    """Without quotes around the whole, as in `'overrides="a=1 b=2"'`: a key has none."""
    found = re.fullmatch(r"\s*(['\"])(.*)\1\s*", text, re.DOTALL)
    return found[2] if found else text
