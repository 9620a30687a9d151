"""The first five tasks give the very samples that the reference models were scored on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from baklava.experiment.components import TaskConfig
from baklava.tasks.base import SPLITS, CountTokens

CONF = Path(__file__).parents[2] / "conf" / "task"

# Of 36 samples each. A changed digest means that published scores no longer compare.
DIGESTS = {
    "niah_single_1": "57e08a8b38ccd256",
    "niah_multikey_1": "7f5878eb1089bb24",
    "niah_multivalue": "795d23aec4d4eb8a",
    "niah_multiquery": "d4d22ffa4c02f28f",
    "vt": "8225697d96a233d9",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_samples_are_byte_for_byte_the_same(name: str, count_reference_tokens: CountTokens) -> None:
    task = TaskConfig.model_validate(yaml.safe_load((CONF / f"{name}.yaml").read_text())).build()
    digest = hashlib.sha256()
    for split in SPLITS:
        for seed, index, length in ((s, i, n) for s in (0, 3) for i in (0, 1, 41) for n in (1024, 2048)):
            sample = task.sample(
                split=split, seed=seed, index=index, length=length, count_tokens=count_reference_tokens
            )
            parts = (sample.index, sample.context, sample.question, sample.answer_prefix, sample.answers)
            digest.update(json.dumps([*parts, sample.max_new_tokens]).encode())
    assert digest.hexdigest()[:16] == DIGESTS[name]
