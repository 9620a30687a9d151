"""Links to the comparisons of a results folder: `python -m baklava.tracking.links RESULTS ADDRESS`."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from baklava.tracking.address import DATABASE


def list_links(results: Path, address: str) -> Iterator[str]:
    """Yield a line per tracked experiment: its name and its link, or what to do where the database does not hold it."""
    active = "SELECT experiment_id, name FROM experiments WHERE lifecycle_stage = 'active'"
    with closing(sqlite3.connect(results / DATABASE, timeout=60)) as store:
        held = {str(number): name for number, name in store.execute(active)}
    for path in sorted(results.glob("*/tracked.json")):
        try:
            tracked = json.loads(path.read_text(encoding="utf-8"))
            number, name = tracked["experiment"]["id"], tracked["experiment"]["name"]
        except (OSError, ValueError, KeyError):
            continue  # tracking=none, or a file that the next `baklava track` writes again
        experiment = path.parent.name
        if held.get(str(number)) == name:
            yield f"{experiment}: {address}/{tracked['view']}"
        else:
            yield f"{experiment}: not in {results / DATABASE}; `baklava track name={experiment} ...` adds it"


if __name__ == "__main__":
    try:
        print("\n".join(f"  {line}" for line in list_links(Path(sys.argv[1]), sys.argv[2])))
    except sqlite3.Error as error:
        sys.exit(f"error: {Path(sys.argv[1]) / DATABASE}: {error}")
