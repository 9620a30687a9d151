"""F1 of a set of nodes, as GraphWalks scores it (https://huggingface.co/datasets/openai/graphwalks)."""

from __future__ import annotations

import re
from collections.abc import Sequence

FINAL_ANSWER = "Final Answer:"


def read_nodes(prediction: str) -> set[str]:
    """The nodes of a final answer `Final Answer: [a, b]` on the last line; or, where none is announced, before a `]`.

    The second is for prompts that end in `Final Answer: [`.
    """
    if FINAL_ANSWER in prediction:
        last = prediction.rstrip().rpartition("\n")[2]
        found = re.search(rf"{FINAL_ANSWER} ?\[(.*)\]", last)
        listed = found[1] if found else ""
    else:
        listed = prediction.partition("]")[0] if "]" in prediction else ""
    return {node.strip() for node in listed.strip("[]").split(",") if node.strip()}


def node_f1(prediction: str, answers: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """Harmonic mean of precision and recall of the nodes that the prediction names, whatever their order."""
    named, right = read_nodes(prediction), set(answers)
    common = len(named & right)
    return 2 * common / (len(named) + len(right)) if common else 0.0
