"""Published sets, read from small made-up files in their layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from baklava.errors import DataError, LengthError, UserError
from baklava.tasks import MRCR, InfiniteBench, LongBenchV2, MathWords, NoLiMa, Sample, Task
from baklava.tasks.infinitebench import load_specs
from baklava.tasks.metrics import METRICS


def words(text: str) -> int:
    return len(text.split())


def draw(task: Task, index: int = 0, *, length: int = 3000, split: str = "evaluation") -> Sample:
    task.check()
    task.check_rows()
    return task.sample(split=split, seed=0, index=index, length=length, count_tokens=words)


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


V2 = {
    "_id": "66f2",
    "domain": "Single-Document QA",
    "sub_domain": "Literary",
    "difficulty": "easy",
    "length": "short",
    "question": "Where did the boats go? ",
    "choice_A": "North",
    "choice_B": "South",
    "choice_C": "Nowhere",
    "choice_D": "Home",
    "answer": "B",
    "context": " The boats left for the south.\n",
}


class TestLongBenchV2:
    @pytest.fixture(params=["data.json", "mine.jsonl", "folder"])
    def task(self, request: pytest.FixtureRequest, tmp_path: Path) -> LongBenchV2:
        (tmp_path / "data.json").write_text(json.dumps([V2, {**V2, "context": "boat " * 900}]), encoding="utf-8")
        path = tmp_path if request.param == "folder" else tmp_path / request.param
        if request.param == "mine.jsonl":
            jsonl(path, V2, {**V2, "context": "boat " * 900})
        return LongBenchV2(name="v2", data=str(path))

    def test_the_prompt_is_the_published_one_and_the_letter_counts(self, task: LongBenchV2) -> None:
        sample = draw(task)
        assert sample.prompt == (
            "Please read the following text and answer the question below.\n\n<text>\nThe boats left for the south.\n"
            "</text>\n\nWhat is the correct answer to this question: Where did the boats go?\nChoices:\n(A) North\n"
            '(B) South\n(C) Nowhere\n(D) Home\n\nFormat your response as follows: "The correct answer is (insert '
            'answer here)".'
        )
        assert (sample.answers, sample.id, sample.max_new_tokens, sample.chat) == (("B",), "66f2", 128, "prompt")
        assert "What is the correct" not in sample.context
        scores = {
            task.reference_answer(sample): 1.0,
            "**The correct answer is (B)**": 1.0,
            "I think The correct answer is B.": 1.0,
            "The correct answer is (A), not B": 0.0,
            "the correct answer is (B)": 0.0,
            "B": 0.0,
        }
        assert {text: task.score(text, sample.answers) for text in scores} == scores

    def test_a_long_text_loses_its_middle(self, task: LongBenchV2) -> None:
        assert words(draw(task, 1, length=500).prompt) == 372 and task.n_available() == 2


@pytest.mark.parametrize(
    ("text", "said"), [('{"a": 1', "not JSON"), ('[{"context": "x"}', "not JSON"), ("[1]", "expected an ob")]
)
def test_an_array_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises((DataError, UserError), match=said):
        draw(LongBenchV2(name="v2", data=str(tmp_path / "data.json")))


CONVERSATION = [
    {"role": "user", "content": "Write a poem about tapirs"},
    {"role": "assistant", "content": "Tapirs are grey."},
    {"role": "user", "content": "Prepend aYo to the 1st (1 indexed) poem about tapirs."},
]


def test_mrcr_reads_the_published_columns_and_scores_what_comes_after_the_beginning(tmp_path: Path) -> None:
    row = {
        "prompt": json.dumps(CONVERSATION),
        "answer": "aYoTapirs are grey.",
        "random_string_to_prepend": "aYo",
        "n_needles": 2,
        "desired_msg_index": 1,
        "total_messages": 3,
        "n_chars": 90,
    }
    pq.write_table(pa.Table.from_pylist([row, {**row, "prompt": "[]"}]), tmp_path / "2needle.parquet")
    task = MRCR(name="mrcr", data=str(tmp_path / "2needle.parquet"), max_new_tokens=20)
    sample = draw(task)
    assert sample.context == "User: Write a poem about tapirs\n\nAssistant: Tapirs are grey.\n\n"
    assert sample.question == "User: Prepend aYo to the 1st (1 indexed) poem about tapirs."

    def score(text: str) -> float:
        return task.score(text, sample.answers, sample.all_classes)

    assert score(task.reference_answer(sample)) == 1.0
    assert score("Tapirs are grey.") == score("") == score(" aYoTapirs are grey.") == 0.0
    assert score("aYoTapirs") == pytest.approx(2 * 6 / (6 + 16))
    with pytest.raises(UserError, match=r"2needle\.parquet, row 1: prompt: 0 messages; the last one asks about those"):
        draw(task, 1)
    with pytest.raises(UserError, match="all_classes: the metric mrcr needs"):
        task.score("aYo", ("aYo",))


NEEDLES = [
    {
        "id": "0401",
        "reasoning_type": "world_knowledge",
        "system_prompt": "",
        "needle": "Actually, {CHAR} lives next to the {1}.",
        "questions": {"onehop": "Which character has been to {2}?", "twohop": "Which character has been to {3}?"},
        "character_set": ["Yuki", "Stuart"],
        "tests": {"T1": {"input_args": ["Semper Opera", "Dresden", "Saxony"]}},
    },
    {
        "id": "0402",
        "needle": "The key is {1}.",
        "questions": {"onehop": "What is it?"},
        "tests": {"T1": {"input_args": ["red"], "gold_answers": ["red", "crimson"]}},
    },
]


class TestNoLiMa:
    @pytest.fixture
    def task(self, tmp_path: Path) -> NoLiMa:
        (tmp_path / "needlesets").mkdir()
        (tmp_path / "needlesets" / "needle_set.json").write_text(json.dumps(NEEDLES))
        (tmp_path / "haystack" / "rand_shuffle").mkdir(parents=True)
        for book in (1, 2):
            lines = "\n".join(f"Book {book} has a line number {i} here." for i in range(900))
            (tmp_path / "haystack" / "rand_shuffle" / f"rand_book_{book}.txt").write_text(lines)
        return NoLiMa(name="nolima", data=str(tmp_path), n_depths=3)

    def test_every_needle_goes_into_every_book_at_every_depth(self, task: NoLiMa) -> None:
        assert task.n_available() == 2 * 3 * 3
        samples = [draw(task, index) for index in range(18)]
        assert len({sample.id for sample in samples}) == 18
        for sample in samples:
            assert 2700 <= words(sample.prompt) + 192 <= 3000
            assert (
                task.score(task.reference_answer(sample), sample.answers) == 1.0 and task.score("", sample.answers) == 0
            )
        first = samples[:3]
        needle = [f" Actually, {sample.answers[0]} lives next to the Semper Opera.\n" for sample in first]
        depths = [sample.context.index(text) / len(sample.context) for sample, text in zip(first, needle, strict=True)]
        assert depths == pytest.approx([0.0, 0.5, 1.0], abs=0.02)
        assert {sample.answers[0] for sample in (*samples[:6], *samples[9:15])} == {"Yuki", "Stuart"}
        assert "been to Dresden?" in first[0].question and "been to Saxony?" in samples[3].question
        assert samples[6].answers == ("red", "crimson") and "Book 1" in samples[6].context
        assert "Book 2" in samples[9].context and samples[6].context.count("\n The key is red") <= 1

    def test_what_is_not_there_is_named(self, task: NoLiMa, tmp_path: Path) -> None:
        with pytest.raises(LengthError, match=r"rand_book_1\.txt is too short for length 20000; ask for less"):
            draw(task, length=20_000)
        with pytest.raises(
            UserError, match=r"task n: data: no .*needlesets/other\.json; set tasks\.n\.data to the folder"
        ):
            NoLiMa(name="n", data=str(tmp_path), needle_set="other.json").check()
        (tmp_path / "needlesets" / "bad.json").write_text("[{}]")
        with pytest.raises(DataError, match=r"bad\.json: not a needle set of NoLiMa \(KeyError: 'questions'\)"):
            draw(NoLiMa(name="n", data=str(tmp_path), needle_set="bad.json"))


ROW = {"id": 3, "context": "TEXT", "input": "INPUT", "answer": ["71432"], "options": []}
OPTIONS = ["dog", "cat", "fox", "owl"]
CALL = "Please give me the exact number of the return value of func_12(-3)."
INFINITE: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "passkey": ({}, {"The pass key is 71432.": 1, "1 71432": 0, "no": 0}),
    "number_string": ({}, {"71432": 1, "71,432": 0}),
    "kv_retrieval": ({"answer": "a-1"}, {'The value is "a-1".': 1, "a-12": 0}),
    "longbook_choice_eng": (
        {"options": OPTIONS, "answer": ["cat"]},
        {"B": 1, "B. cat": 1, "cat": 1, "A": 0, "so the answer is: B": 1, "I say B": 1, "hm C": 0, "": 0},
    ),
    "longbook_qa_eng": ({"answer": ["the red cat", "cat"]}, {"A cat.": 1, "red dog": 0.5, "": 0}),
    "longbook_qa_chn": ({"answer": ["红色的猫"]}, {"红色的猫。": 1, "猫": 0.4, "狗": 0}),
    "longdialogue_qa_eng": ({"answer": ["ACE", "ACE R"]}, {"Ace, I think": 1, "Rothstein": 0}),
    "math_find": (
        {"input": "What is The second largest number of the list?", "answer": [88]},
        {"88": 1, "It is 88.0": 1, "8 8": 0, "": 0},
    ),
    "math_calc": ({"answer": [[1, 4, 8, 2]]}, {"[1, 4, 8, 2]": 1, "1, 4, 9, 2": 0.5, "no": 0}),
    "code_run": ({"input": CALL, "answer": [-5]}, {"-5": 1, "is: `-5`.": 1, "-5 or so": 0, "": 0}),
    "code_debug": (
        {"options": OPTIONS, "answer": ["fox"]},
        {"C. fox": 1, "The answer is: C": 1, "the correct option is: fox": 1, "C": 0, "A. dog": 0},
    ),
}


@pytest.mark.parametrize("dataset", INFINITE)
def test_infinitebench_has_the_published_fields_and_scores(dataset: str, tmp_path: Path) -> None:
    row, scores = INFINITE[dataset]
    jsonl(tmp_path / f"{dataset}.jsonl", {**ROW, **row})
    task = InfiniteBench(name="i", dataset=dataset, data=str(tmp_path))
    sample = draw(task, length=40_000)
    assert "TEXT" in sample.context and sample.id == "3" and task.n_available() == 1
    assert "{" not in sample.prompt and sample.max_new_tokens == load_specs()[dataset].max_new_tokens
    assert task.score(task.reference_answer(sample), sample.answers) == 1.0
    assert {text: task.score(text, sample.answers) for text in scores} == pytest.approx(scores)
    if dataset == "code_run":
        assert sample.context.startswith("There is a function called func_12 in") and sample.answer_prefix.endswith(
            "The value of func_12(-3) is"
        )
    if dataset == "math_find":
        assert sample.context == "What is the second largest number in the following list?\n\nTEXT"


def test_a_folder_with_other_sets_only_is_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "passkey.jsonl", {**ROW, "answer": ["1"]})  # which `datasets` would load
    task = InfiniteBench(name="i", dataset="kv_retrieval", data=str(tmp_path), data_split="train")
    for read in (task.check, task.n_available):
        with pytest.raises(
            DataError, match=r"^task i: data: no kv_retrieval\.jsonl in .*, but passkey\.jsonl; set tasks"
        ):
            read()


def test_infinitebench_names_what_is_wrong_with_a_row(tmp_path: Path) -> None:
    assert set(INFINITE) == set(load_specs())
    path = jsonl(tmp_path / "x.jsonl", {**ROW, "options": OPTIONS, "answer": ["cow"]}, {**ROW, "answer": {}})
    task = InfiniteBench(name="i", dataset="code_debug", data=path)
    with pytest.raises(UserError, match=r"x\.jsonl, line 1: answer: 'cow' is none of the options"):
        draw(task)
    with pytest.raises(UserError, match=r"x\.jsonl, line 2: options: expected a list of texts"):
        draw(task, 1)
    with pytest.raises(UserError, match=r"x\.jsonl, line 1: input: nothing like"):
        draw(InfiniteBench(name="i", dataset="code_run", data=path))
    with pytest.raises(UserError, match="dataset: InfiniteBench has no 'longbook_sum_eng' here; it has passkey, "):
        InfiniteBench(name="i", dataset="longbook_sum_eng")


MATH: dict[str, tuple[dict[str, Any], str, dict[str, float]]] = {
    "gsm8k": (
        {"question": "How many?", "answer": "She has 1,000+20.\n#### 1,020"},
        "1,020",
        {"1020": 1, "so 5 and 1,020.00": 1, "\\boxed{1020\\text{ eggs}}": 1, "#### 1020\n": 1, "1020 or 7": 0, "": 0}
        | {"#### 1,020 eggs in 2 days": 1, "#### 1020\n\nNext: #### 7": 1, "\\boxed{7} #### 1020.": 1, "#### ,": 0}
        | {
            "\\boxed{1020 eggs}": 1,
            "\\boxed{1{,}020}": 1,
            "\\boxed{\\frac{2040}{1020}}": 0,
            "\\boxed{\\sqrt{1020}}": 0,
        },
    ),
    "math_500": (
        {"problem": "What is it?", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "unique_id": "test/1.json"},
        "\\left( 3, \\frac{\\pi}{2} \\right)",
        {"\\boxed{(3,\\dfrac{\\pi}{2})}": 1, "\\boxed{(3, 2)}": 0, "(3,\\frac{\\pi}{2})": 0, "\\boxed{(3": 0, "": 0},
    ),
    "aime": ({"problem": "Find it.", "answer": 73, "id": 60}, "73", {"\\boxed{073}": 1, "\\boxed{74}": 0, "73": 1}),
}


@pytest.mark.parametrize("dataset", MATH)
def test_reasoning_is_scored_by_its_end(dataset: str, tmp_path: Path) -> None:
    row, answer, scores = MATH[dataset]
    task = MathWords(name="m", dataset=dataset, data=jsonl(tmp_path / "test.jsonl", row))  # type: ignore[arg-type]
    sample = draw(task)
    assert sample.answers == (answer,) and "\\boxed{}" in sample.question and "\\boxed" not in sample.context
    assert task.score(task.reference_answer(sample), sample.answers) == 1.0
    assert {text: task.score(text, sample.answers) for text in scores} == scores


@pytest.mark.parametrize(
    ("ours", "right", "equal"),
    [
        ("\\frac12", "\\frac{1}{2}", True),
        ("0.5", "\\frac{1}{2}", True),
        ("1/2", "\\tfrac12", True),
        ("-3/4", "-\\frac{3}{4}", True),
        ("12\\text{ cm}", "12", True),
        ("\\text{Evelyn}", "Evelyn", True),
        ("90^\\circ", "90", True),
        ("10,\\!000", "10000", True),
        ("5.0", "5", True),
        ("x=4", "4", True),
        ("\\sqrt3", "\\sqrt{3}", True),
        ("50\\%", "50", True),
        (".25", "0.25", True),
        ("\\frac1{72}", "\\dfrac{1}{72}", True),
        ("\\frac{90^\\circ}{2}", "\\frac{90}{2}", True),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", True),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}12\\end{pmatrix}", False),
        ("12", "1,2", False),
        ("2,1", "1,2", False),
        ("1{,}234", "1,\\!234", True),
        ("12\\text{ m\nand}", "12", True),
        ("\\$18.90", "18.9", True),
        ("\\text{(A)}", "(A)", True),
        ("y = x+1", "x+1", True),
        ("{1, 2", "12", False),
        ("2x+1", "1+2x", False),
        ("\\frac{1}{3}", "\\frac{1}{2}", False),
    ],
)
def test_ways_to_write_an_answer(ours: str, right: str, equal: bool) -> None:
    assert MathWords(name="m", dataset="math_500").score(f"\\boxed{{{ours}}}", (right,)) == float(equal)


def test_answers_of_another_kind_are_the_files_fault() -> None:
    numbers = (
        "final_number",
        *(f"infinitebench_{name}" for name in ("first_number", "last_integer", "leading_values")),
    )
    for metric in numbers:
        with pytest.raises(UserError, match="answers: expected a number, got 'many'"):
            METRICS[metric]("3", ("many",), ())
    with pytest.raises(UserError, match="answers: expected the name of a function and the letter"):
        METRICS["infinitebench_find_bug"]("A", ("A",), ())
