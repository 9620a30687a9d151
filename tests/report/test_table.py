from __future__ import annotations

import re

import pandas as pd
import pytest
from synthetic_results import EVICTION, MODELS, write_budgets, write_experiment

from baklava.analysis.headline import Headline
from baklava.analysis.results import read_summary
from baklava.analysis.summary import summarize
from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.experiment.compose import compose
from baklava.experiment.jobs import SummarizeJob
from baklava.experiment.ownership import claim_results
from baklava.experiment.paths import ExperimentPaths
from baklava.report.table import print_table
from baklava.report.text_table import _escape


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> ExperimentPaths:
    layout = ExperimentPaths(tmp_path_factory.mktemp("results"), "demo")
    write_experiment(layout)
    write_budgets(layout)
    summarize(SummarizeJob.of(compose(["experiment=demo", "summary.n_bootstrap=100"]), layout))
    return layout


@pytest.fixture
def printed(layout, repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("COLUMNS", "100")

    def run(form: str = "text") -> str:
        print_table(["experiment=demo", f"results={layout.results}"], form)
        return capsys.readouterr().out

    return run


def test_rows_hold_the_means_over_tasks(layout, printed):
    lines = printed().splitlines()
    headline = Headline.load(layout.headline)
    header = next(i for i, line in enumerate(lines) if line.split()[:2] == ["model", "ratio"])
    assert lines[header].split() == ["model", "ratio", "full", "uniform", "baklava", "KV", "MiB"]
    rows = [line.split() for line in lines[header + 1 :] if re.search(r"\d\.\d{3}", line)]
    assert len(rows) == len(MODELS) * 6
    for block, (model, figures) in zip((rows[:6], rows[6:]), headline.models.items(), strict=True):
        assert block[0] == [model, "0", f"{figures.full:.3f}", f"{figures.kv_bytes_full / 2**20:.2f}"]
        baklava, uniform = figures.methods
        for row, u, b in zip(block[1:], uniform.ratios, baklava.ratios, strict=True):
            assert row[:2] == [f"{b.ratio:g}", f"{figures.full:.3f}"]
            assert row[2:] == [f"{u.score:.3f}", f"{b.score:.3f}", f"{b.kv_bytes / 2**20:.2f}"]


def test_the_chosen_estimators_and_the_lossless_ratios_are_named(layout, printed):
    path = layout.budgets("tiny-llama", "baklava", EVICTION, 0.5)
    before = path.read_bytes()
    shares = Budgets.load(path).shares
    other = {"mapping": "baklava", "estimator": "value_output_cosine"}
    Budgets.from_shares(shares, ratio=0.5, allocator="baklava", parameters=other).save(path)
    uniform = {"mapping": "uniform"}
    again = layout.budgets("tiny-qwen2", "baklava", EVICTION, 0.9)
    kept = again.read_bytes()
    Budgets.uniform(n_layers=8, n_kv_heads=2, ratio=0.9, parameters=uniform).save(again)
    text = printed()
    path.write_bytes(before)
    again.write_bytes(kept)
    for line in (
        "tiny-llama, baklava / streaming_llm: eviction_shift at r = 0.3, 0.7, 0.8, 0.9; value_output_cosine at r = 0.5",
        "tiny-qwen2, baklava / streaming_llm: eviction_shift at r = 0.3, 0.5, 0.7, 0.8; uniform at r = 0.9",
    ):
        assert f"  {line}\n" in text
    for model, figures in Headline.load(layout.headline).models.items():
        baklava, uniform = figures.methods
        verdicts = f"baklava / {EVICTION} r = 0.5; uniform / {EVICTION} no tested ratio ({uniform.explain_none()})"
        assert baklava.largest_lossless_ratio == 0.5
        assert f"  {model}: {verdicts}\n" in text


def test_short_contexts_that_were_kept_whole_are_named(printed, monkeypatch):
    assert "kept whole" not in printed()

    def read_short(path):
        summary = read_summary(path)
        whole = summary["task"] == "vt"
        summary.loc[whole, "kept_fraction"], summary.loc[whole, "kv_bytes"] = 1.0, summary.loc[whole, "kv_bytes_full"]
        return summary

    monkeypatch.setattr("baklava.report.table.read_summary", read_short)
    assert (
        printed().count("vt: short contexts were kept whole (evaluate.compress_above), so that at r = 0.9 100.0%") == 1
    )


def test_it_says_where_everything_is(layout, printed):
    text = printed()
    assert str(layout.summary_csv) in text
    assert str(layout.figures) in text
    assert f"baklava run experiment=demo results={layout.results} -- --report" in text
    assert f"Budgets    {layout.root / 'budgets'}\n" in text
    assert "make ui" in text


def test_the_plain_experiment_has_a_make_target(layout, repository, monkeypatch, capsys, tmp_path):
    (tmp_path / "conf").symlink_to(repository / "conf")
    (tmp_path / "results").symlink_to(layout.results)
    monkeypatch.chdir(tmp_path)
    print_table(["experiment=demo"])
    assert "make report EXPERIMENT=demo\n" in capsys.readouterr().out


def test_a_folder_is_enough_and_the_commands_are_those_that_made_it(layout, repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    made = ["experiment=demo", f"results={layout.results}", "evaluate.seed=0"]
    claim_results(compose(made), made)
    try:
        print_table([str(layout.root)])
        from_folder = capsys.readouterr().out
        print_table(["name=demo", f"results={layout.results}"])
    finally:
        layout.experiment_json.unlink()
    assert capsys.readouterr().out == from_folder
    assert "demo: mean score over" in from_folder
    assert f"baklava run experiment=demo results={layout.results} evaluate.seed=0 -- --report" in from_folder


def test_missing_results_come_with_the_command_that_makes_them(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(UserError) as caught:
        print_table(["experiment=demo", f"results={tmp_path}", "name=small"])
    expected = f"`baklava run experiment=demo results={tmp_path} name=small`"
    assert str(caught.value) == f"{tmp_path}/small/summary.parquet: no results yet; make them with {expected}"


def test_without_an_experiment_it_asks_for_one(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(UserError, match="no results yet; name the experiment, as in `baklava table experiment=demo`"):
        print_table([f"results={tmp_path}"])


def test_missing_budgets_are_named(layout, printed):
    path = layout.budgets("tiny-llama", "baklava", EVICTION, 0.7)
    aside = path.rename(path.with_suffix(".aside"))
    with pytest.raises(UserError, match="no such budgets file"):
        printed()
    aside.rename(path)


def test_markdown_and_latex_hold_the_same_numbers_and_intervals(layout, printed):
    def numbers(lines: list[str]) -> list[list[str]]:
        """Scores, without the intervals behind them."""
        return [scores for line in lines if (scores := re.findall(r"\d\.\d{3}", re.sub(r"\[.*?\]", "", line)))]

    markdown, latex = printed("markdown").splitlines(), printed("latex").splitlines()
    expected = numbers(printed().split("Lossless up to")[0].splitlines())
    assert numbers(markdown) == numbers(latex) == expected
    assert len(expected) == 12
    for figures in Headline.load(layout.headline).models.values():
        for method in figures.methods:
            for at in method.ratios:
                interval = f"{at.score:.3f} [{at.ci_low:.3f}, {at.ci_high:.3f}]"
                assert interval in "\n".join(markdown) and interval in "\n".join(latex)
    assert markdown[0] == "| model | ratio | full | uniform | baklava | KV MiB |"
    assert markdown[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert latex[:2] == [r"\begin{tabular}{lrrrrr}", r"\toprule"]
    assert all(line.endswith(r" \\") for line in latex if "&" in line)
    assert sum(line.count("**") for line in markdown) == 2 * sum(line.count("textbf") for line in latex) > 0


def test_what_repeating_contexts_took_and_where_it_failed_is_said_below(layout, printed):
    before = layout.timings_csv.read_bytes()
    assert "reading a context twice" not in printed()
    times = pd.read_csv(layout.timings_csv)
    kept = {
        "repetition_seconds": 0.5,
        "repetition_loss": 0.02,
        "highest_repetition_loss": 0.4,
        "failed_repetitions": 0.0,
    }
    failed = {**kept, "repetition_loss": 2.25, "highest_repetition_loss": 3.0, "failed_repetitions": 0.75}
    for model, values in zip(MODELS, (kept, failed), strict=True):
        times.loc[(times["model"] == model) & (times["allocator"] == "uniform"), list(values)] = list(values.values())
    times.to_csv(layout.timings_csv, index=False)
    good, bad = (
        f"{model}, {EVICTION}: reading a context twice took 0.50 s more; its repetition lost " for model in MODELS
    )
    good += "0.02 nats per token, 0.40 at most"
    bad += "2.25 nats per token, 3.00 at most; 75% FAILED (above 1): the scores mean little there"
    texts = [printed(form).splitlines() for form in ("text", "markdown", "latex")]
    layout.timings_csv.write_bytes(before)
    for mark, lines in zip(("", "", "% "), texts, strict=True):
        assert {mark + good, mark + bad} <= set(lines)


def test_names_are_escaped_for_latex():
    assert _escape("100% of a_b & {c}") == r"100\% of a\_b \& \{c\}"
