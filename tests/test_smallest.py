"""Every command on the smallest experiments there are: one KV cache, one prompt of each kind, one sample, one token."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_experiment import write_model

from baklava.analysis.results import read_summary
from baklava.budgets import Budgets
from baklava.cli import main
from baklava.experiment.compose import compose
from baklava.experiment.paths import ExperimentPaths
from baklava.report.figure_list import list_figures
from baklava.system.parquet import read_parquet
from baklava.validation import regret

STAGES = (
    *("calibrate", "profile", "curves", "allocate", "evaluate", "measure"),
    *("validate", "summarize", "claims", "report", "page", "table"),
)
SETTINGS = [
    *("experiment=smoke", "task=niah_single_1", "+tasks.niah_single_1.max_new_tokens=1"),
    *("calibration.length=400", "calibration.n_profile=1", "calibration.n_search=1", "search.n_rounds=1"),
    *("evaluate.length=400", "evaluate.n_samples=1", "summary.n_bootstrap=100"),
    *("measure.enabled=true", "measure.context=1", "measure.tokens=1", "measure.repeats=1"),
    *("validate.enabled=true", "validate.n_prompts=1", "validate.lengths=[400]", "claims.enabled=true"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single KV cache."""
    folder = tmp_path_factory.mktemp("model") / "one"
    return write_model(folder, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)


@pytest.mark.parametrize(
    ("allocator", "eviction", "ratio"),
    [("[uniform,baklava,baklava_measured]", "h2o", 0.0), ("[baklava_measured]", "ada_snapkv", 0.999)],
    ids=["nothing is compressed", "hardly anything is kept"],
)
def test_every_command_ends_well(model: Path, tmp_path: Path, allocator: str, eviction: str, ratio: float) -> None:
    given = [f"models.tiny-llama.path={model}", f"results={tmp_path}", f"allocator={allocator}"]
    given += [f"eviction={eviction}", f"ratios=[{ratio}]", "claims.allocator=baklava_measured"]
    for stage in STAGES:
        assert main([stage, *SETTINGS, *given]) == 0, stage
    config = compose([*SETTINGS, *given])
    layout = ExperimentPaths(config.results, config.name)
    methods = [(name, eviction) for name in config.allocators] if ratio else []
    summary = read_summary(layout.summary_parquet)
    assert list(zip(summary["allocator"], summary["eviction"], strict=True)) == [("full", "none"), *methods]
    for row in summary.to_dict("records"):
        n_full = row["kv_bytes_full"]
        assert row["kept_fraction"] == pytest.approx(row["kv_bytes"] / n_full)
        assert row["kept_fraction"] == pytest.approx(1 - row["ratio"], abs=0.5 / 300)
    for name, _ in methods:
        assert Budgets.load(layout.budgets("tiny-llama", name, eviction, ratio)).shares == pytest.approx(1 - ratio)
    lost = read_parquet(
        layout.validation("tiny-llama", "regret"), regret.COLUMNS, schema=regret.SCHEMA, what="", hint=""
    )
    assert lost["regret"].to_pylist() == pytest.approx([0.0] * len(lost))
    assert (len(lost) == 0) == (not methods)
    for figure in list_figures(config):
        assert layout.figure(figure.name).is_file(), figure.name
