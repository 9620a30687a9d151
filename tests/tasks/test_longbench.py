"""LongBench as published: templates, lengths, rules and metrics of all 21 sets, on invented data in its layout."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import yaml
from benchmark_data import CLASSES, longbench_row, write_jsonl

from baklava.errors import UserError
from baklava.experiment.components import TaskConfig
from baklava.tasks.base import CountTokens, Sample
from baklava.tasks.longbench import LongBench, Spec, find_length_class, load_specs

CONF = Path(__file__).parents[2] / "conf" / "task" / "longbench"

# metric, generated tokens, chat template, first line only, in LongBench-E; from table 1 and the published scripts
PUBLISHED = {
    "narrativeqa": ("qa_f1", 128, True, False, False),
    "qasper": ("qa_f1", 128, True, False, True),
    "multifieldqa_en": ("qa_f1", 64, True, False, True),
    "multifieldqa_zh": ("qa_f1_zh", 64, True, False, False),
    "hotpotqa": ("qa_f1", 32, True, False, True),
    "2wikimqa": ("qa_f1", 32, True, False, True),
    "musique": ("qa_f1", 32, True, False, False),
    "dureader": ("rouge_l_zh", 128, True, False, False),
    "gov_report": ("rouge_l", 512, True, False, True),
    "qmsum": ("rouge_l", 512, True, False, False),
    "multi_news": ("rouge_l", 512, True, False, True),
    "vcsum": ("rouge_l_zh", 512, True, False, False),
    "trec": ("classification", 64, False, True, True),
    "triviaqa": ("qa_f1", 32, False, True, True),
    "samsum": ("rouge_l", 128, False, True, True),
    "lsht": ("classification", 64, False, True, False),
    "passage_count": ("count", 32, True, False, True),
    "passage_retrieval_en": ("retrieval", 32, True, False, True),
    "passage_retrieval_zh": ("retrieval_zh", 32, True, False, False),
    "lcc": ("code_similarity", 64, False, False, True),
    "repobench-p": ("code_similarity", 64, False, False, True),
}
SETS = [*PUBLISHED, *(f"{name}_e" for name, spec in PUBLISHED.items() if spec[4])]


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked data.zip: every set with three rows, and LongBench-E's with one of each class of length."""
    path = tmp_path_factory.mktemp("longbench")
    for name, spec in load_specs().items():
        write_jsonl(path / "data" / f"{name}.jsonl", [longbench_row(name, spec.metric, i) for i in range(3)])
        if spec.in_e:
            rows = [longbench_row(name, spec.metric, i, length=n) for i, n in enumerate((3999, 4000, 8000))]
            write_jsonl(path / "data" / f"{name}_e.jsonl", rows)
    return path


def task(name: str, data: Path | None) -> LongBench:
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    del values["defaults"]  # what the tasks share holds no data
    built = TaskConfig.model_validate({**values, "data": data and str(data)}).build()
    assert isinstance(built, LongBench)
    return built


def draw(one: LongBench, index: int = 0, *, length: int = 20_000, count_tokens: CountTokens = words) -> Sample:
    return one.sample(split="evaluation", seed=0, index=index, length=length, count_tokens=count_tokens)


def test_all_sets_are_the_published_ones() -> None:
    fixed = {
        name: (one.metric, one.max_new_tokens, one.chat, one.first_line, one.in_e) for name, one in load_specs().items()
    }
    assert fixed == PUBLISHED
    assert sorted(path.stem for path in CONF.glob("[!_]*.yaml")) == sorted(SETS)


def test_templates_are_frozen() -> None:
    """Character for character the published ones, misspellings included: scores compare with no others."""
    prompts = json.dumps({name: one.prompt for name, one in load_specs().items()}, sort_keys=True)
    assert hashlib.sha256(prompts.encode()).hexdigest()[:16] == "bb89f011861ff65f"


def test_a_prompt_reads_as_published(folder: Path) -> None:
    sample = draw(task("hotpotqa", folder))
    row = longbench_row("hotpotqa", "qa_f1", 0)
    assert sample.prompt == (
        "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n"
        "\n"
        "The following are given passages.\n"
        f"{row['context']}\n"
        "\n"
        "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n"
        "\n"
        f"Question: {row['input']}\n"
        "Answer:"
    )
    assert sample.context.endswith("boats.")
    assert sample.answer_prefix == "Answer:"
    assert (sample.answers, sample.id, sample.group) == (("31 boats", "many boats"), "hotpotqa0000", "")


@pytest.mark.parametrize("name", SETS)
def test_every_set_gives_its_prompt_and_its_rules(name: str, folder: Path) -> None:
    base = name.removesuffix("_e")
    metric, max_new_tokens, chat, _, _ = PUBLISHED[base]
    one = task(name, folder)
    row = longbench_row(base, metric, 1)
    sample = draw(one, 1)
    assert sample.prompt == load_specs()[base].prompt.replace("{context}", row["context"]).replace(
        "{input}", row["input"]
    )
    assert sample.max_new_tokens == max_new_tokens == one.max_new_tokens
    assert sample.chat == ("prompt" if chat else "none")
    assert sample.all_classes == (tuple(CLASSES) if metric == "classification" else ())
    assert sample.answer_prefix.strip()  # something is left to read after the compression
    assert row["context"] in sample.context
    assert one.metric_name() == metric
    assert one.score(one.reference_answer(sample), sample.answers, sample.all_classes) == pytest.approx(1.0)
    assert one.score("", sample.answers, sample.all_classes) == 0.0
    assert one.n_available() == 3


def test_classes_of_length_are_those_of_longbench_e(folder: Path) -> None:
    one = task("hotpotqa_e", folder)
    assert [draw(one, i).group for i in range(3)] == ["0-4k", "4-8k", "8k+"]
    assert [find_length_class(n) for n in (0, 3999, 4000, 7999, 8000)] == ["0-4k", "0-4k", "4-8k", "4-8k", "8k+"]


@pytest.mark.parametrize("name", ["trec", "triviaqa", "samsum", "lsht"])
def test_only_the_first_line_counts_where_it_is_published_so(name: str, folder: Path) -> None:
    one = task(name, folder)
    sample = draw(one)
    right = sample.answers[0]
    assert one.score(f"\n\n{right}\nsomething else", sample.answers, sample.all_classes) == pytest.approx(1.0)
    assert one.score(f"nothing\n{right}", sample.answers, sample.all_classes) == 0.0


def test_other_sets_read_the_whole_prediction(folder: Path) -> None:
    one = task("hotpotqa", folder)
    assert one.score("31\nboats", ("31 boats",)) == 1.0


@pytest.mark.parametrize("name", ["narrativeqa", "trec", "lcc", "repobench-p"])
@pytest.mark.parametrize("length", [800, 1000])
def test_a_long_prompt_loses_its_middle_and_keeps_its_end(
    name: str, length: int, folder: Path, count_reference_tokens: CountTokens
) -> None:
    one = task(name, folder)
    whole = draw(one)
    cut = draw(one, length=length, count_tokens=count_reference_tokens)
    total = count_reference_tokens(cut.prompt) + cut.max_new_tokens
    assert 0.98 * length <= total <= length
    assert (cut.question, cut.answer_prefix) == (whole.question, whole.answer_prefix)
    assert whole.context.startswith(cut.context[:100])
    assert whole.context.endswith(cut.context[-100:])


def test_too_short_a_length_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"task longbench_gov_report: .*line 1: cannot be cut to length 512"):
        draw(task("gov_report", folder), length=512)


class TestData:
    def test_comes_alike_from_a_folder_an_archive_and_a_snapshot(self, folder: Path, tmp_path: Path) -> None:
        archive = tmp_path / "data.zip"
        with zipfile.ZipFile(archive, "w") as zipped:
            for path in (folder / "data").iterdir():
                zipped.write(path, f"data/{path.name}")
        expected = draw(task("lcc", folder))
        for data in (folder / "data", folder / "data" / "lcc.jsonl", archive, tmp_path):
            assert draw(task("lcc", data)) == expected

    def test_may_be_a_data_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        write_jsonl(tmp_path / "set" / "test.jsonl", [longbench_row("trec", "classification", i) for i in range(2)])
        one = task("trec", tmp_path / "set")
        assert one.n_available() == 2
        assert draw(one, 1).all_classes == tuple(CLASSES)

    @pytest.mark.parametrize("data", [None, Path("/no/such/data.zip")])
    def test_that_is_missing_is_asked_for_before_the_first_job(self, data: Path | None) -> None:
        with pytest.raises(
            UserError, match=r"task longbench_lcc: data: .*set tasks\.longbench_lcc\.data to LongBench's"
        ):
            task("lcc", data).check()

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("context", None, "context: missing; the row has"),
            ("input", 3, "input: expected a text, got 3"),
            ("answers", "x", "answers: expected a list of texts, got 'x'"),
            ("answers", [1], r"answers: expected a list of texts, got \[1\]"),
            ("all_classes", None, "all_classes: missing"),
            ("length", "long", "length: expected a whole number from 1, got 'long'"),
        ],
    )
    def test_that_is_malformed_is_named_and_spoils_no_other_row(
        self, field: str, value: object, said: str, tmp_path: Path
    ) -> None:
        rows = [longbench_row("trec", "classification", i) for i in range(3)]
        rows[1][field] = value
        write_jsonl(tmp_path / "trec_e.jsonl", rows)
        one = task("trec_e", tmp_path)
        with pytest.raises(UserError, match=rf"trec_e\.jsonl, line 2: {said}"):
            draw(one, 1)
        assert [draw(one, i).id for i in (0, 2)] == ["trec0000", "trec0002"]


def test_unknown_sets_are_refused() -> None:
    with pytest.raises(UserError, match="dataset: LongBench has no 'nq'; it has narrativeqa, "):
        LongBench(name="t", dataset="nq")
    with pytest.raises(UserError, match="extended: LongBench-E has no 'musique'; it has qasper, "):
        LongBench(name="t", dataset="musique", extended=True)


def test_specs_are_complete() -> None:
    for name, spec in load_specs().items():
        assert isinstance(spec, Spec)
        assert spec.prompt.count("{context}") == 1, name
        assert spec.prompt.index("{context}") < spec.prompt.find("{input}") or "{input}" not in spec.prompt
