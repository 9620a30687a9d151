"""The tokenizer of the reference models, built once."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from baklava.training.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()
