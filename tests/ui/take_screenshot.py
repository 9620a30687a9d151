"""`python tests/ui/take_screenshot.py results/demo docs/mlflow.png`: the saved view of a tracked experiment."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from browser import browser, server
from page import close_assistant, plots, wait_for


def main(experiment: Path, output: Path) -> None:
    """Save what a user sees who opens the link that `baklava track` printed."""
    tracked = json.loads((experiment / "tracked.json").read_text())
    store = f"sqlite:///{(experiment.parent / 'mlflow.db').resolve()}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(store, folder) as address, browser(folder / "profile", width=1500, height=950) as driver:
            driver.get(f"{address}/{tracked['view']}")
            close_assistant(driver)
            wait_for(driver, "charts", lambda: len(plots(driver)) >= 2)
            time.sleep(5)  # lines are drawn a few at a time
            driver.save_screenshot(str(output))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
