"""Writes `docs/families.md` anew: `PYTHONPATH=.:tests python tests/write_families.py`, which takes a minute or two."""

from __future__ import annotations

from pathlib import Path

from family_outcomes import Outcome, outcome_of
from tiny_families import FAMILIES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

PAGE = Path(__file__).parent.parent / "docs" / "families.md"

HEADER = """\
# Model families

Every family of causal language models that the pinned transformers has, and what budgets do with it.
`tests/test_families.py` builds a tiny random model of each and compares; this page is what it finds
(`PYTHONPATH=.:tests python tests/write_families.py`).

- **exact**: with all entries kept, the logits are those of a `DynamicCache`; with half of them, each KV cache keeps
  exactly its budget and the logits are those of a full pass with the evicted entries masked. Reading in chunks and in
  batches with padding on the left gives the same.
- **refused**: `BudgetedCache`, `baklava plan`, `calibrate` and `profile` say so in one line, from the config, before
  weights are loaded.

What counts is the checkpoint's own config: one that names other kinds of layers in `layer_types`, a window in every
layer, or KV caches shared between layers is refused whatever its family. A window that is as long as the model's
positions never leaves a token out: such layers have budgets. Families that are encoders by default (BERT, ...) are
meant with `is_decoder`. Models with code of their own that are in no table are tried out on two tokens when they are
loaded, and a cache raises an error where a model's attention goes past it.

| model type | class | budgets | profile | |
|---|---|---|---|---|
"""


def row(family: str, outcome: Outcome) -> str:
    """One line of the table."""
    profile = "" if not outcome.exact else "no" if outcome.profile else "yes"
    notes = "; ".join(note for note in (outcome.note, outcome.profile) if note)
    budgets = "exact" if outcome.exact else "refused"
    return f"| `{family}` | {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]} | {budgets} | {profile} | {notes} |"


if __name__ == "__main__":
    PAGE.write_text(HEADER + "".join(f"{row(family, outcome_of(family))}\n" for family in FAMILIES), encoding="utf-8")
