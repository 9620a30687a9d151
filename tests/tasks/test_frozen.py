"""The first five tasks give the very samples that the reference models were scored on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from baklava.experiment.components import TaskConfig
from baklava.tasks.base import CountTokens

CONF = Path(__file__).parents[2] / "conf" / "task"

# Of 36 samples each. A changed digest means that published scores no longer compare.
DIGESTS = {
    "niah_single_1": "039b3fa75047a9b4",
    "niah_multikey_1": "893fc82bedc9b71a",
    "niah_multivalue": "3443ab00a6bf4fcf",
    "niah_multiquery": "c5fac3c6f3824dfa",
    "vt": "b51a34f74e7602f4",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_samples_are_byte_for_byte_the_same(name: str, count_reference_tokens: CountTokens) -> None:
    task = TaskConfig.model_validate(yaml.safe_load((CONF / f"{name}.yaml").read_text())).build()
    digest = hashlib.sha256()
    for split in ("train", "evaluation"):  # calibration puts needles elsewhere
        for seed, index, length in ((s, i, n) for s in (0, 3) for i in (0, 1, 41) for n in (1024, 2048)):
            sample = task.sample(
                split=split, seed=seed, index=index, length=length, count_tokens=count_reference_tokens
            )
            parts = (sample.index, sample.context, sample.question, sample.answer_prefix, sample.answers)
            digest.update(json.dumps([*parts, sample.max_new_tokens]).encode())
    assert digest.hexdigest()[:16] == DIGESTS[name]
