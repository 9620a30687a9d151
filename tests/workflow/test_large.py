"""A large experiment is planned without loading what only its jobs need; seconds would depend on the machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Not among them: pandas, which Snakemake's SLURM plugin imports wherever it is installed, and pyarrow with it.
HEAVY = ("torch", "transformers", "tokenizers", "datasets", "mlflow", "matplotlib", "scipy", "optuna", "plotly")
LARGE = (
    "model=[tiny-llama,tiny-qwen2] "
    "task=[niah_single_1,niah_multikey_1,niah_multivalue,niah_multiquery,vt,needle_grid,ruler/cwe,ruler/fwe,"
    "ruler_standin/niah_multikey_1,ruler_standin/niah_multiquery,ruler_standin/niah_multivalue,"
    "ruler_standin/niah_single_2,ruler_standin/niah_single_3] "
    "allocator=[uniform,baklava,pyramid,squeeze,duo] eviction=[streaming_llm,snapkv] "
    "ratios=[0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8]"
)


def test_planning_loads_no_library_that_computes(repository: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "snakemake",
        "-n",
        "--snakefile",
        str(repository / "Snakefile"),
    ]
    command += ["--config", "experiment=smoke", f"overrides={LARGE}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    planned = dict(re.findall(r"^(calibrate|allocate|evaluate) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE))
    assert planned == {"calibrate": "2", "allocate": "20", "evaluate": "26"}
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, flags=re.MULTILINE))
    assert "pydantic" in imported
    assert imported.isdisjoint(HEAVY)
