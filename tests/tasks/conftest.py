"""Token counters that differ as much as tokenizers do."""

from __future__ import annotations

from pathlib import Path

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


@pytest.fixture(scope="session")
def essay_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences that are all different, about 12,000 words: an invented essay."""
    path = tmp_path_factory.mktemp("essay") / "essay.txt"
    things, places = ("boats", "trees", "letters", "winters", "stories"), ("the harbour", "the hills", "town")
    sentences = (
        f"In year {year} the {things[year % 5]} near {places[year % 3]} were counted again; {year // 2} were missing."
        for year in range(700)
    )
    path.write_text("\n\n".join(sentences), encoding="utf-8")
    return path
