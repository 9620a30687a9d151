"""LongBench, SQuAD and HotpotQA in their published layouts, with synthetic content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CLASSES = ["Boats", "Boats and harbours", "Weather", "Other"]
ANSWERS = {
    "classification": ["Weather"],
    "count": ["7"],
    "retrieval": ["Paragraph 12"],
    "retrieval_zh": ["段落12"],
    "code_similarity": ["    return harbour.boats"],
    "qa_f1_zh": ["三十一艘船"],
    "rouge_l_zh": ["港口有三十一艘船"],
}


def longbench_row(dataset: str, metric: str, index: int, *, length: int = 100) -> dict[str, Any]:
    """Make a line of LongBench's JSONL; the set gives the metric, the index the content."""
    return {
        "input": f"How many boats were there in year {index}?\nAnswer this:",
        "context": " ".join(f"In year {year} the harbour of {dataset} had {31 + index} boats." for year in range(90)),
        "answers": ANSWERS.get(metric, [f"{31 + index} boats", "many boats"]),
        "length": length,
        "dataset": dataset,
        "language": "zh" if metric.endswith("_zh") or dataset == "lsht" else "en",
        "all_classes": CLASSES if metric == "classification" else None,
        "_id": f"{dataset}{index:04}",
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def squad() -> dict[str, Any]:
    """Make SQuAD's JSON: 4 articles of 5 paragraphs, each with a question, one of them without an answer."""
    articles = []
    for a in range(4):
        paragraphs = []
        for p in range(5):
            number = 1000 + 10 * a + p
            filler = " ".join(f"Gull {g} of bay {number} slept." for g in range(4 + p))
            paragraphs.append(
                {
                    "context": f"Bay {number} has {number * 3} boats. {filler}",
                    "qas": [
                        {
                            "id": f"q{number}",
                            "question": f"How many boats has bay {number}?",
                            "answers": [{"text": str(number * 3), "answer_start": 13}, {"text": f"{number * 3} boats"}],
                            "is_impossible": False,
                        },
                        {"id": f"i{number}", "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
            )
        articles.append({"title": f"Coast {a}", "paragraphs": paragraphs})
    return {"version": "v2.0", "data": articles}


def hotpotqa() -> list[dict[str, Any]]:
    """Make HotpotQA's JSON: 6 questions with 3 documents each."""
    return [
        {
            "_id": f"h{i}",
            "question": f"Which gull lives in the bay of captain {i}?",
            "answer": f"Gull{i}x",
            "context": [
                [f"Captain {i}", [f"Captain {i} sails ", f"from bay {i}."]],
                [f"Bay {i}", [f"Bay {i} is where Gull{i}x lives."]],
                [f"Weather {i}", [f"It rained {i} times.", " Then it stopped."]],
            ],
            "supporting_facts": [[f"Captain {i}", 0], [f"Bay {i}", 0]],
        }
        for i in range(6)
    ]
