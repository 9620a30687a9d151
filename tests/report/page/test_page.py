"""The page: its numbers are those of the results, it loads nothing, and names stay names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from synthetic_results import EVICTION, MODELS, RATIOS, TASKS, cell_records, measurements, write_records, write_results

from baklava.analysis.cells import read_cells
from baklava.analysis.headline import Headline, compute_headline
from baklava.analysis.results import SCHEMA, read_summary
from baklava.analysis.summary import summarize_cells
from baklava.budgets import Budgets
from baklava.experiment.compose import compose
from baklava.experiment.jobs import PageJob
from baklava.experiment.paths import ExperimentPaths
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.settings import SummaryConfig
from baklava.importance.profile import Profile
from baklava.report.data.curves import MEAN
from baklava.report.page.run import write_page
from baklava.system.parquet import write_parquet

NAME = "<script>alert(1)</script>"
LOADS = ("src", "srcset", "poster", "action", "formaction", "background", "data")


class Html(HTMLParser):
    """Elements, scripts and visible text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._inside, self._in_cell = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside != "style":
            self.text += data
            if self._in_cell:
                self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "data"))

    def frames(self, view: str) -> dict[tuple[str, ...], dict[str, Any]]:
        [frames] = [shown["frames"] for shown in self.data["views"] if shown["id"] == view]
        return {tuple(frame["at"]): frame for frame in frames}


def lines(frame: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The curves of a frame by the method's label."""
    return {trace["name"]: trace for trace in frame["data"] if trace.get("mode") == "lines+markers"}


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    tasks = "task=[niah_single_1,niah_multikey_1,vt,needle_grid]"
    return compose(["experiment=demo", tasks, "measure.enabled=true", "summary.n_bootstrap=100"])


@pytest.fixture(scope="module")
def layout(config, tmp_path_factory) -> ExperimentPaths:
    layout = ExperimentPaths(tmp_path_factory.mktemp("results"), "demo")
    write_results(layout, config)
    write_page(PageJob.of(config, layout))
    return layout


@pytest.fixture(scope="module")
def text(layout) -> str:
    return layout.page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(text) -> Html:
    return Html(text)


@pytest.fixture(scope="module")
def summary(layout) -> pd.DataFrame:
    return read_summary(layout.summary_parquet)


@pytest.fixture(scope="module")
def headline(layout) -> Headline:
    return Headline.load(layout.headline)


class TestNumbers:
    def test_the_cells_are_the_summary(self, html, summary):
        data = html.data
        cells = pd.DataFrame(data["rows"], columns=data["columns"])
        pd.testing.assert_frame_equal(cells, summary, check_dtype=False, check_exact=True)

    @pytest.mark.parametrize("view", ["score-vs-ratio", "score-vs-kv-bytes"])
    def test_curves_of_a_task_are_rows_of_the_summary(self, html, summary, view):
        frames = html.frames(view)
        assert list(frames)[:2] == [("tiny-llama", MEAN), ("tiny-llama", "needle_grid")]
        for (model, task), rows in summary.groupby(["model", "task"]):
            full = rows[rows.allocator == "full"]
            for allocator, line in lines(frames[model, task]).items():
                own = pd.concat([full, rows[rows.allocator == allocator].sort_values("ratio")])
                assert line["y"] == own["score"].tolist()
                if view == "score-vs-ratio":
                    assert line["x"] == own["ratio"].tolist()
                else:
                    assert line["x"] == pytest.approx((own["kv_bytes"] / 2**20).tolist())

    def test_the_mean_is_the_headline(self, html, headline):
        frames = html.frames("score-vs-ratio")
        for model, figures in headline.models.items():
            curves = lines(frames[model, MEAN])
            for method in figures.methods:
                assert curves[method.allocator]["y"] == [figures.full, *(at.score for at in method.ratios)]

    def test_a_band_is_the_interval(self, html, summary):
        frame = html.frames("score-vs-ratio")["tiny-qwen2", "vt"]
        [band] = [trace for trace in frame["data"] if trace.get("fill") and trace["legendgroup"] == "baklava"]
        rows = summary[(summary.model == "tiny-qwen2") & (summary.task == "vt")]
        own = pd.concat([rows[rows.allocator == "full"], rows[rows.allocator == "baklava"].sort_values("ratio")])
        assert band["y"] == [*own["ci_low"], *own["ci_high"][::-1]]

    def test_a_point_tells_interval_differences_memory_and_samples(self, html, summary):
        said = lines(html.frames("score-vs-ratio")["tiny-llama", "vt"])["baklava"]["text"][3]
        [row] = summary[
            (summary.model == "tiny-llama")
            & (summary.task == "vt")
            & (summary.allocator == "baklava")
            & (summary.ratio == 0.7)
        ].to_dict("records")
        for expected in (
            "<b>baklava</b>, r = 0.7",
            f"score {row['score']:.3f}, 95% interval [{row['ci_low']:.3f}, {row['ci_high']:.3f}]",
            f"to the full cache {row['delta_full']:+.3f} [{row['delta_full_low']:+.3f}, {row['delta_full_high']:+.3f}]",
            f"to uniform {row['delta_uniform']:+.3f}",
            "keeps 30.0% of the entries",
            "64 samples",
        ):
            assert expected in said

    def test_budgets_are_those_of_the_files(self, html, layout):
        frames = html.frames("budgets")
        assert len(frames) == len(MODELS) * 2 * len(RATIOS)
        for model in MODELS:
            budgets = Budgets.load(layout.budgets(model, "baklava", EVICTION, 0.8))
            frame = frames[model, f"baklava / {EVICTION}", "0.8"]
            assert frame["data"][0]["z"] == (100 * budgets.shares).tolist()
            assert frame["note"] == (
                "eviction_shift; loss on the calibration prompts: these budgets 0.280, uniform 1.200, full cache 0.100"
            )

    def test_importance_is_that_of_the_profiles(self, html, layout):
        for model in MODELS:
            profile = Profile.load(layout.profile(model))
            for name in profile.head_importance:
                frame = html.frames("importance")[model, name]
                assert frame["data"][0]["z"] == profile.kv_importance(name).tolist()
            of_layers = html.frames("importance")[model, "layer_cosine"]["data"][0]["z"]
            assert of_layers == profile.layer_importance.astype(float).mean(0)[:, None].tolist()

    def test_importance_opens_with_the_estimator_that_the_budgets_follow(self, html):
        first = {}
        for model, estimator in html.frames("importance"):
            first.setdefault(model, estimator)
        assert first == dict.fromkeys(MODELS, "eviction_shift")

    def test_ticks_of_the_memory_axis_are_written_in_full(self, html):
        axis = html.frames("score-vs-kv-bytes")["tiny-llama", "vt"]["layout"]["xaxis"]
        assert axis["ticktext"] == ["1", "2", "5"]
        assert axis["tickvals"] == [1, 2, 5]

    def test_needle_grids_and_measurements_are_there(self, html):
        grid = html.frames("needle-grid")["tiny-llama", "needle_grid", f"uniform / {EVICTION}", "0.9"]
        assert grid["data"][0]["z"] == [[1, 1], [1, 0], [1, 1]]
        speed = lines(html.frames("measured")["tiny-qwen2", "decoding, tokens/s"])["uniform"]
        rows = measurements("tiny-qwen2")
        assert speed["y"] == [100.0, *rows[rows.allocator == "uniform"]["tokens_per_second"]]

    def test_the_headline_table_says_what_the_headline_says(self, layout, html, headline):
        alone = Html(layout.headline_table.read_text(encoding="utf-8")).rows
        assert alone == html.rows[: len(alone)]
        heads, *rows = alone
        assert heads[4:] == [f"r = {ratio:g}" for ratio in RATIOS]
        expected = []
        for model, figures in headline.models.items():
            for method in reversed(figures.methods):  # uniform first
                first = model if method.allocator == "uniform" else ""
                lossless = " ".join(filter(None, (headline.describe_lossless(model, method), method.explain_none())))
                scores = [f"{at.score:.3f}" for at in method.ratios]
                if method.allocator != "uniform":
                    times = "\N{MULTIPLICATION SIGN}"
                    scores = [f"{at.score:.3f} {times}{at.gain_over_uniform:.2f}" for at in method.ratios]
                expected.append([first, method.allocator, f"{figures.full:.3f}", lossless, *scores])
        assert rows == expected

    def test_links_lead_to_the_budgets(self, html, layout):
        links = [attributes["href"] for tag, attributes in html.elements if tag == "a"]
        files = {(layout.root / unquote(link)).resolve() for link in links if link.endswith(".json")}
        assert files == {path.resolve() for path in layout.root.glob("budgets/**/*.json")}


class TestOnItsOwn:
    @pytest.mark.parametrize("name", ["page", "headline_table"])
    def test_nothing_is_loaded(self, layout, name):
        page = Html(getattr(layout, name).read_text(encoding="utf-8"))
        assert not {tag for tag, _ in page.elements} & {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert not [attributes for _, attributes in page.elements if attributes.keys() & set(LOADS)]

    @pytest.mark.parametrize("name", ["page", "headline_table"])
    def test_the_style_loads_nothing(self, layout, name):
        [style] = re.findall(
            r"<style>(.*?)</style>", getattr(layout, name).read_text(encoding="utf-8"), flags=re.DOTALL
        )
        assert "url(" not in style
        assert "@import" not in style

    def test_the_browser_is_told_to_load_and_run_nothing_else(self, html):
        [policy] = [attributes["content"] for tag, attributes in html.elements if "http-equiv" in attributes]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        executed = [text for attributes, text in html.scripts if attributes.get("type") != "application/json"]
        assert len(executed) == 2
        for script in executed:
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
        assert policy.count("sha256-") == 2

    def test_plotly_is_there_once(self, text):
        assert text.count("* plotly.js v") == 1

    def test_the_same_results_give_the_same_bytes(self, config, layout, text):
        write_page(PageJob.of(config, layout))
        assert layout.page.read_text(encoding="utf-8") == text


def page_of(tmp_path: Path, records: pd.DataFrame, **changed: Any) -> Html:
    """The page of records alone: no profile, budgets, grids or measurements."""
    layout = ExperimentPaths(tmp_path, "e")
    cells, settings = read_cells([write_records(layout.records("m", "t"), records)]), SummaryConfig(n_bootstrap=100)
    write_parquet(layout.summary_parquet, summarize_cells(cells, settings), schema=SCHEMA)
    compute_headline(cells, settings).save(layout.headline)
    nothing = {"profiles": {}, "budgets": (), "measurements": {}, "needle_grids": {}}
    files = {"summary": layout.summary_parquet, "headline": layout.headline, "timings_csv": layout.timings_csv}
    outputs = {"output": layout.page, "headline_table": layout.headline_table}
    write_page(PageJob(**{"experiment": "e", "models": {}, **nothing, **files, **outputs, **changed}))
    return Html(layout.page.read_text(encoding="utf-8"))


def test_what_an_experiment_does_not_have_is_left_out(tmp_path):
    compressed = cell_records([1.0, 0.0], allocator="uniform", ratio=0.5)
    page = page_of(tmp_path, pd.concat([cell_records([1.0, 1.0]), compressed]))
    assert [view["id"] for view in page.data["views"]] == ["score-vs-ratio", "score-vs-kv-bytes"]
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {"headlines", "cells", "run"} <= ids
    assert not {"files", "budgets", "importance", "needle-grid", "measured"} & ids


def test_an_experiment_that_compresses_nothing_has_a_page(tmp_path):
    page = page_of(tmp_path, cell_records([1.0, 0.5]))
    assert "nothing was compressed" in page.text
    assert lines(page.frames("score-vs-ratio")["tiny-llama", "vt"]) == {}


def test_short_contexts_that_were_kept_whole_are_named(tmp_path):
    full = cell_records([1.0, 1.0])
    total, n_bytes = full["total_entries"][0], full["kv_bytes_full"][0]
    kept = {"kept_entries": [total, total // 10], "kv_bytes": [n_bytes, n_bytes // 10]}
    half_short = cell_records([1.0, 0.0], allocator="uniform", ratio=0.9, **kept)
    page = page_of(tmp_path, pd.concat([full, half_short]))
    assert "vt: short contexts were kept whole (evaluate.compress_above), so that at r = 0.9 55.0% of" in page.text


def test_repetitions_that_failed_are_named(tmp_path):
    timings = ExperimentPaths(tmp_path, "e").timings_csv
    losses = {"repetition_loss": 2.25, "highest_repetition_loss": 3.0, "failed_repetitions": 0.75}
    timings.parent.mkdir(parents=True)
    pd.DataFrame([{"model": "m", "eviction": "kvzip", "repetition_seconds": 0.5, **losses}]).to_csv(timings)
    page = page_of(tmp_path, cell_records([1.0, 0.5]))
    assert "m, kvzip: reading a context twice took 0.50 s more" in page.text
    assert "75% FAILED (above 1): the scores mean little there" in page.text


def test_a_method_that_keeps_nothing_leaves_the_axis_of_memory_finite(tmp_path):
    nothing = cell_records([1.0], allocator="uniform", ratio=0.5, kept_entries=0, kv_bytes=0)
    page = page_of(tmp_path, pd.concat([cell_records([1.0]), nothing]))
    frame = page.frames("score-vs-kv-bytes")["tiny-llama", "vt"]
    low, high = frame["layout"]["xaxis"]["range"]
    assert -1 < low < high < 2  # powers of ten of a unit that the full cache fills


def test_names_are_never_markup(tmp_path):
    named = {"model": NAME, "task": NAME, "eviction": NAME}
    frames = [cell_records([1.0, 1.0], model=NAME, task=NAME)]
    frames += [
        cell_records([1.0, 0.0], **named, allocator=a, ratio=0.5) for a in ("uniform", "<img src=x onerror=a()>")
    ]
    page = page_of(tmp_path, pd.concat(frames), experiment=f'"><a href="//x">{NAME}')
    assert len(page.scripts) == 3
    assert "img" not in {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not [attributes for tag, attributes in page.elements if tag == "a" and "//x" in (attributes["href"] or "")]
    assert f'"><a href="//x">{NAME}' in page.text
    [frame] = [frame for at, frame in page.frames("score-vs-ratio").items() if at == (NAME, NAME)]
    shown = [trace["name"] for trace in frame["data"] if "name" in trace]
    assert "&lt;img src=x onerror=a()&gt;" in shown
    hovers = [text for trace in frame["data"] for text in trace.get("text", ())]
    assert not [text for text in hovers if "<img" in text or "<script" in text]


def test_scores_beyond_the_usual_and_gaps_survive(tmp_path):
    page = page_of(tmp_path, pd.concat([cell_records([2.0]), cell_records([1.5], allocator="pyramid", ratio=0.5)]))
    data = page.data
    rows = [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]
    assert [row["delta_uniform"] for row in rows] == [None, None]
    frame = page.frames("score-vs-ratio")["tiny-llama", "vt"]
    assert frame["layout"]["yaxis"]["range"][1] > 2
    assert not np.isnan(lines(frame)["pyramid"]["y"]).any()


def test_tasks_are_all_offered(html):
    offered = {at[1] for at in html.frames("score-vs-ratio")}
    assert offered == {MEAN, *TASKS, "needle_grid"}
