"""Token counters that differ as much as tokenizers do."""

from __future__ import annotations

import pytest

from baklava.errors import UserError
from baklava.models import reference_model_path
from baklava.tasks.base import CountTokens


def _words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="session")
def count_reference_tokens() -> CountTokens:
    """Tokens of the reference models, the one that begins a text included."""
    try:
        folder = reference_model_path("tiny-llama")
    except UserError:
        from baklava.training.tokenizer import build_tokenizer

        tokenizer = build_tokenizer()
        return lambda text: len(tokenizer.encode(text))

    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: len(fast.encode(text).ids)


@pytest.fixture(params=["reference", "words", "characters"])
def count_tokens(request: pytest.FixtureRequest) -> CountTokens:
    if request.param == "reference":
        return request.getfixturevalue("count_reference_tokens")
    return {"words": _words, "characters": len}[request.param]
