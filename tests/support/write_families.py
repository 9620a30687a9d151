"""Writes `docs/families.md` anew; needs `tests/support` on the path and takes a minute or two."""

from __future__ import annotations

from pathlib import Path

from family_outcomes import Outcome, outcome_of
from tiny_families import CLASSES, FAMILIES, MULTIMODAL

PAGE = Path(__file__).parents[2] / "docs" / "families.md"

HEADER = """\
# Model families

Every family of causal language models, and of models of text and images or sound, that the pinned transformers has,
and what budgets do with it.
`tests/decoder/test_families.py` builds a tiny random model of each and compares; this page is what it finds
(`PYTHONPATH=.:tests/support python tests/support/write_families.py`).

- **exact**: with all entries kept, the logits are those of a `DynamicCache`; with half of them, each KV cache keeps
  exactly its budget and the logits are those of a full pass with the evicted entries masked. Reading in chunks and in
  batches with padding on the left gives the same.
- **refused**: `BudgetedCache`, `baklava plan`, `calibrate` and `profile` say so in one line, from the config, before
  weights are loaded.

What counts is the checkpoint's own config: one that names other kinds of layers in `layer_types`, a window in every
layer, or KV caches shared between layers is refused whatever its family. A window that is as long as the model's
positions never leaves a token out: such layers have budgets. Families that are encoders by default (BERT, ...) are
meant with `is_decoder`. Models with code of their own that are in no table are tried out on two tokens when they are
loaded, and a cache raises an error where a model's attention goes past it. Of models with encoders for images or sound,
texts are read; the encoders stay as they are (`tests/cache/attention/test_towers.py`).
"""
COLUMNS = """
| model type | class | budgets | profile | |
|---|---|---|---|---|
"""
PARTS = {"Causal language models": FAMILIES, "Models of text and images or sound": MULTIMODAL}


def row(family: str, outcome: Outcome) -> str:
    """One line of the table."""
    profile = "" if outcome.budgets != "exact" else "no" if outcome.profile else "yes"
    notes = "; ".join(note for note in (outcome.note, outcome.profile) if note)
    return f"| `{family}` | {CLASSES[family]} | {outcome.budgets} | {profile} | {notes} |"


def main() -> None:
    page = HEADER
    for title, families in PARTS.items():
        page += f"\n## {title}\n{COLUMNS}" + "".join(f"{row(one, outcome_of(one))}\n" for one in families)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
