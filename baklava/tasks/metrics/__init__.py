"""Every metric by name. A metric turns a prediction and the right answers into a number in [0, 1], without torch."""

from collections.abc import Callable

from baklava.tasks.metrics.base import Metric, best_of
from baklava.tasks.metrics.chinese import check_jieba, qa_f1_zh
from baklava.tasks.metrics.classification import classification
from baklava.tasks.metrics.code_similarity import code_similarity
from baklava.tasks.metrics.exact import boxed, choice, contains, final_number
from baklava.tasks.metrics.infinitebench import METRICS as INFINITEBENCH
from baklava.tasks.metrics.mrcr import mrcr
from baklava.tasks.metrics.node_f1 import node_f1
from baklava.tasks.metrics.numbers import count, make_retrieval
from baklava.tasks.metrics.qa_f1 import qa_f1
from baklava.tasks.metrics.rouge import rouge_l, rouge_l_zh
from baklava.tasks.metrics.route import route
from baklava.tasks.metrics.string_match import string_match_all, string_match_part

METRICS: dict[str, Metric] = {
    "string_match_all": string_match_all,
    "string_match_part": string_match_part,
    "qa_f1": best_of(qa_f1),
    "qa_f1_zh": best_of(qa_f1_zh),
    "rouge_l": best_of(rouge_l),
    "rouge_l_zh": best_of(rouge_l_zh),
    "classification": classification,
    "retrieval": best_of(make_retrieval("Paragraph ")),
    "retrieval_zh": best_of(make_retrieval("段落")),
    "count": best_of(count),
    "code_similarity": best_of(code_similarity),
    "route": route,
    "node_f1": node_f1,
    "contains": contains,
    "choice": best_of(choice),
    "final_number": best_of(final_number),
    "boxed": best_of(boxed),
    "mrcr": mrcr,
    **INFINITEBENCH,
}

# Metrics that look at `all_classes`.
WITH_CLASSES = ("classification", "mrcr")

# Functions that check for packages of an extra, for the metrics that need them.
_NEEDS: dict[str, Callable[[], None]] = {"qa_f1_zh": check_jieba, "rouge_l_zh": check_jieba}


def check_metric(name: str) -> None:
    """Raise `UserError` that says what to install if a metric lacks a package. Imports no package."""
    if name in _NEEDS:
        _NEEDS[name]()


__all__ = ["METRICS", "WITH_CLASSES", "Metric", "check_metric"]
