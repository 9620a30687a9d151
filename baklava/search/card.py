"""A card beside searched budgets: what they are, of which model, for which policy, and how to load them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from baklava import __version__
from baklava.budgets import Budgets
from baklava.experiment.jobs import AllocateJob
from baklava.importance.profile import Profile
from baklava.models import local_model
from baklava.system.files import atomic

CARD = "README.md"
SCORES = "## Scores"  # what follows it is written when scores are known
LOSSES = {"loss": "loss", "loss_uniform": "uniform budgets", "loss_full": "full cache", "held_back": "loss, held back"}


def write_card(job: AllocateJob, profile: Profile, budgets: Mapping[float, Budgets]) -> None:
    """Write the card of a job's budgets into their folder, without scores."""
    folder = next(iter(job.budgets.values())).parent
    with atomic(folder / CARD) as unfinished:
        unfinished.write_text(_card(job, profile, budgets), encoding="utf-8")


def _card(job: AllocateJob, profile: Profile, budgets: Mapping[float, Budgets]) -> str:
    model, n_prompts = job.model, len(profile.layer_importance)
    shape = next(iter(budgets.values())).shape
    facts = {
        "model": f"`{model.path}`, revision {model.revision or 'not pinned'}, {model.dtype}",
        "content of its files": f"`{profile.meta.get('content')}`",
        "KV caches": f"{shape[0]} layers x {shape[1]} KV heads",
        "eviction policy": _settings(job.eviction.model_dump(mode="json")),
        "allocator": _settings(job.allocator.model_dump(mode="json")),
        "calibration": f"`{profile.meta.get('calibration')}`, {n_prompts} prompts profiled",
        "objective of the search": job.search.objective,
        "made by": f"baklava-kv {__version__}",
    }
    known = [name for name in LOSSES if any(name in one.provenance for one in budgets.values())]
    head = ["ratio", "file", "sha256", *(LOSSES[name] for name in known)]
    rows = [
        [
            f"{ratio:g}",
            path.name,
            f"`{_sha256(path)}`",
            *(_number(budgets[ratio].provenance.get(name)) for name in known),
        ]
        for ratio, path in sorted(job.budgets.items())
    ]
    base = "" if local_model(model.path) is not None else f"base_model: {model.path}\n"
    policy = job.eviction.name
    return f"""---
library_name: baklava-kv
tags: [kv-cache, long-context]
{base}---

# KV cache budgets of {model.name} for {policy}

One share of the context per KV cache (layer x KV head), found by `{job.allocator.name}` for eviction by `{policy}`;
with another policy, other KV caches need memory. The ratio is the fraction of KV entries that is removed,
or of their bytes where these budgets have bits.

{_table(["", ""], [[name, value] for name, value in facts.items()])}

{_table(head, rows)}

Losses are means over calibration prompts (nats per token of the continuation).

```python
from baklava import BudgetedCache, Budgets

budgets = Budgets.from_pretrained("ORG/NAME", ratio={min(budgets):g})  # or this folder
model.set_attn_implementation("baklava")
cache = BudgetedCache(model.config, budgets, eviction="{policy}")
```

{SCORES}

Not evaluated yet.
"""


def _settings(values: Mapping[str, object]) -> str:
    return f"{values['name']} (`{json.dumps({key: value for key, value in values.items() if key != 'name'})}`)"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else ""


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
