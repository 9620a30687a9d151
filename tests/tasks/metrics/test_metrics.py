"""LongBench's metrics: values worked out by hand, and what holds for all of them."""

from __future__ import annotations

import subprocess
import sys
from difflib import SequenceMatcher

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baklava.errors import UserError
from baklava.tasks.metrics import METRICS, check_metric

CLASSES = ("Date", "Individual", "Number of something", "Other number", "Group or organization of person")


def score(metric: str, prediction: str, *answers: str, all_classes: tuple[str, ...] = ()) -> float:
    return METRICS[metric](prediction, answers, all_classes)


class TestQaF1:
    @pytest.mark.parametrize(
        ("prediction", "answer", "expected"),
        [
            ("Paris", "paris", 1.0),
            ("The city of Paris.", "paris", 0.5),  # city, of, paris: precision 1/3, recall 1
            ("the a an", "paris", 0.0),
            ("An apple, a pear!", "the pear", 2 / 3),
            ("new new york", "new york york", 2 / 3),  # bags, not sets
            ("state-of-the-art", "state of the art", 0.0),  # one word without its hyphens
            ("", "paris", 0.0),
            ("anthem", "them", 0.0),  # articles are whole words
        ],
    )
    def test_is_f1_over_normalised_words(self, prediction: str, answer: str, expected: float) -> None:
        assert score("qa_f1", prediction, answer) == pytest.approx(expected)

    def test_the_best_answer_counts(self) -> None:
        assert score("qa_f1", "in Paris", "London", "Paris", "Paris in France") == pytest.approx(0.8)


class TestChinese:
    def test_f1_is_over_words_without_punctuation(self) -> None:
        # The left mark stays a word, as published.
        assert score("qa_f1_zh", "北京。", "《北京》") == pytest.approx(2 / 3)
        assert score("qa_f1_zh", "北京、上海", "北京") == pytest.approx(2 / 3)
        assert score("qa_f1_zh", "北京", "上海") == 0.0

    def test_rouge_is_over_words(self) -> None:
        assert score("rouge_l_zh", "我们 喜欢 北京", "我们喜欢北京") > 0.8
        assert score("rouge_l_zh", "上海", "我们喜欢北京") == 0.0

    def test_what_lacks_jieba_is_told_without_scoring(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in METRICS:
            check_metric(name)
        monkeypatch.setitem(sys.modules, "jieba", None)
        refused = []
        for name in METRICS:
            try:
                check_metric(name)
            except UserError:
                refused.append(name)
        assert refused == ["qa_f1_zh", "rouge_l_zh"]

    def test_without_jieba_the_error_says_what_to_install(self) -> None:
        code = (
            "import sys; sys.modules['jieba'] = None\n"
            "from baklava.tasks.metrics import METRICS\n"
            "METRICS['qa_f1_zh']('a', ('b',), ())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (
            "UserError: Chinese metrics need jieba; install it with `pip install 'baklava-kv[chinese]'`" in done.stderr
        )


class TestRouge:
    def test_is_the_f_over_the_longest_common_subsequence(self) -> None:
        # "the cat mat" of 5 and 4 different words
        assert score("rouge_l", "the cat sat on mat", "the cat under mat") == pytest.approx(2 * 0.6 * 0.75 / 1.35)

    def test_repeated_words_count_once(self) -> None:
        assert score("rouge_l", "go go go", "go") == pytest.approx(1.0)

    def test_sentences_end_at_full_stops(self) -> None:
        """The union over sentences finds both halves, in whichever order they come."""
        assert score("rouge_l", "one two. three four", "three four. one two") == pytest.approx(1.0)
        assert score("rouge_l", "one two three four", "three four one two") == pytest.approx(0.5)

    @pytest.mark.parametrize("nothing", ["", ".", "..."])
    def test_nothing_scores_zero(self, nothing: str) -> None:
        assert score("rouge_l", nothing, "a b") == 0.0
        assert score("rouge_l", "a b", nothing) == 0.0

    def test_long_sentences_do_not_end_the_recursion(self) -> None:
        limit = sys.getrecursionlimit()
        text = " ".join(f"w{i}" for i in range(700))
        assert score("rouge_l", text, text) == pytest.approx(1.0)
        assert sys.getrecursionlimit() == limit


class TestClassification:
    @pytest.mark.parametrize(
        ("prediction", "expected"),
        [
            ("Date", 1.0),
            ("Date or Individual", 0.5),
            ("Individual", 0.0),
            ("date", 0.0),
            ("", 0.0),
        ],
    )
    def test_is_shared_by_the_classes_named(self, prediction: str, expected: float) -> None:
        assert score("classification", prediction, "Date", all_classes=CLASSES) == expected

    def test_a_part_of_the_right_name_does_not_count(self) -> None:
        classes = ("number", "number of people", "people")
        assert score("classification", "number of people", "number of people", all_classes=classes) == 1.0

    def test_the_class_after_a_dropped_one_stays_as_published(self) -> None:
        classes = ("num", "number", "number of people")
        assert score("classification", "number of people", "number of people", all_classes=classes) == 0.5

    def test_needs_classes(self) -> None:
        with pytest.raises(UserError, match="all_classes: the metric classification needs"):
            score("classification", "Date", "Date")


class TestNumbers:
    @pytest.mark.parametrize(
        ("metric", "prediction", "answer", "expected"),
        [
            ("count", "There are 7.", "7", 1.0),
            ("count", "7, or 8, or 7", "7", 2 / 3),
            ("count", "07", "7", 0.0),
            ("count", "seven", "7", 0.0),
            ("retrieval", "Paragraph 12", "Paragraph 12", 1.0),
            ("retrieval", "12 or 13", "Paragraph 12", 0.5),
            ("retrieval", "Paragraph 1", "Paragraph 12", 0.0),
            ("retrieval_zh", "段落3", "段落3", 1.0),
            ("retrieval_zh", "3和4", "段落3", 0.5),
        ],
    )
    def test_is_the_part_of_the_numbers_that_is_right(
        self, metric: str, prediction: str, answer: str, expected: float
    ) -> None:
        assert score(metric, prediction, answer) == pytest.approx(expected)

    def test_an_answer_without_its_number_is_refused(self) -> None:
        with pytest.raises(UserError, match="answers: expected `Paragraph ` with a number after it, got '12'"):
            score("retrieval", "12", "12")


class TestCodeSimilarity:
    @pytest.mark.parametrize(
        ("prediction", "answer", "expected"),
        [
            ("return x", "return x", 1.0),
            ("\n\nreturn x\nreturn y", "return x", 1.0),
            ("```python\n# a comment\nreturn x\n", "return x", 1.0),
            ("// a comment", "return x", 0.0),
            ("abcd", "abcx", 0.75),
            ("", "return x", 0.0),
            ("abc", "abd", 0.67),  # whole hundredths
        ],
    )
    def test_compares_the_first_line_of_code(self, prediction: str, answer: str, expected: float) -> None:
        assert score("code_similarity", prediction, answer) == expected

    def test_is_difflibs_ratio_and_not_one_of_edits(self) -> None:
        line, answer = "private final Map map;", "protected Map theMap = map;"
        assert score("code_similarity", line, answer) == round(SequenceMatcher(None, line, answer).ratio(), 2)


text = st.text(st.sampled_from("ab 12.,#/`\n\t段落北京。the"), max_size=30) | st.text(max_size=10)


@settings(max_examples=60)
@given(prediction=text, answers=st.lists(text, min_size=1, max_size=3), number=st.integers(0, 20))
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_stays_between_zero_and_one(metric: str, prediction: str, answers: list[str], number: int) -> None:
    if metric.startswith("retrieval"):
        answers = [f"Paragraph {number} 段落{number}"]
    if metric in NUMBERS:
        answers = [str(number)] * len(answers)
    if metric == "infinitebench_find_bug":
        answers = [answers[0], "A"]
    classes = ("a",) if metric == "mrcr" else ("a", "ab", "the 1")
    value = METRICS[metric](prediction, answers, classes)
    assert type(value) is float
    assert 0.0 <= value <= 1.0
    if metric != "route" and not metric.startswith("infinitebench"):  # whose answers have an order
        assert METRICS[metric](prediction, answers[::-1], classes) == pytest.approx(value)


NUMBERS = (
    "final_number",
    "infinitebench_first_integer",
    "infinitebench_first_number",
    "infinitebench_last_integer",
    "infinitebench_leading_values",
)
PERFECT = {
    "retrieval": ("Paragraph 3", "Paragraph 3"),
    "retrieval_zh": ("段落3", "段落3"),
    "choice": ("The correct answer is (C)", "C"),
    "boxed": ("\\boxed{x + 1}", "x+1"),
    "node_f1": ("three fine words]", "three fine words"),
    "infinitebench_find_word": ("three fine words", "fine"),
    "infinitebench_find_name": ("three fine words", "FINE"),
    **dict.fromkeys(("count", *NUMBERS), ("3", "3")),
}


@pytest.mark.parametrize(
    "metric", [name for name in METRICS if name not in ("classification", "mrcr", "infinitebench_find_bug")]
)
def test_a_perfect_answer_scores_one(metric: str) -> None:
    prediction, answer = PERFECT.get(metric, ("three fine words",) * 2)
    assert score(metric, prediction, answer) == pytest.approx(1.0)


def test_metrics_need_no_torch_to_import() -> None:
    heavy = ("torch", "transformers", "datasets", "jieba")
    code = f"import sys, baklava.tasks.metrics; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
