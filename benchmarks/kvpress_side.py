"""kvpress' side of `against_kvpress.py`, run by it in the environment of `make test-kvpress`.

    python benchmarks/kvpress_side.py JOB.json ANSWERS.json

Every press at every ratio over all samples, through kvpress' text generation pipeline, as its evaluation runs them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from kvpress import KnormPress, KVPressTextGenerationPipeline, SnapKVPress, StreamingLLMPress
from transformers import AutoModelForCausalLM, AutoTokenizer

PRESSES: dict[str, Any] = {"streaming_llm": StreamingLLMPress, "snapkv": SnapKVPress, "knorm": KnormPress}


def answer(pipeline: KVPressTextGenerationPipeline, sample: dict[str, Any], press: Any) -> str:
    """One sample through the pipeline.

    Its `preprocess` would need a token that begins texts, and would put a new line before the answer prefix, so the
    tokens are made here: those that BaKlaVa reads.
    """
    context, question = (
        pipeline.tokenizer.encode(sample[part], return_tensors="pt", add_special_tokens=part == "context")
        for part in ("context", "question")
    )
    inputs = {"context_ids": context, "questions_ids": [question]}
    made = pipeline.forward(inputs, press=press, max_new_tokens=sample["max_new_tokens"])
    return str(pipeline.postprocess(made, single_question=True)["answer"])


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).to(job["device"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    pipeline = KVPressTextGenerationPipeline(model=model.eval(), tokenizer=tokenizer, device=job["device"])
    for press in PRESSES.values():  # warm-up
        answer(pipeline, job["samples"][0], press(compression_ratio=0.5))
    found = []
    started = time.perf_counter()
    for name, ratio in job["cells"]:
        press = PRESSES[name](compression_ratio=ratio)
        found.append([answer(pipeline, sample, press) for sample in job["samples"]])
    seconds = time.perf_counter() - started
    result = {"seconds": seconds, "predictions": found}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
