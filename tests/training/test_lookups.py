"""Documents whose answers are looked up step by step: marked where the answers are, and right."""

from __future__ import annotations

import hashlib
import random
import re
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from baklava.training.documents import Document, Mark
from baklava.training.lookups import LookupWriter
from baklava.training.tokenizer import END

SEEDS = st.integers(0, 2**40)
ASKED = re.compile(r'(value of|Begin at) the key "([^"]+)" in .*? The value is "(.+?)"\.' + re.escape(END))


@pytest.fixture(scope="session")
def writer(tokenizer: PreTrainedTokenizerFast) -> LookupWriter:
    return LookupWriter(tokenizer)


def answers(document: Document, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    runs = groupby(zip(document.ids, document.marks, strict=True), key=lambda marked: marked[1] != Mark.BACKGROUND)
    return [tokenizer.decode([token for token, _ in run]) for answer, run in runs if answer]


@settings(max_examples=40)
@given(kind=st.sampled_from(["pairs", "short_pairs", "threads", "short_threads"]), seed=SEEDS)
def test_what_is_looked_up_in_an_object_is_right(
    writer: LookupWriter, tokenizer: PreTrainedTokenizerFast, kind: str, seed: int
) -> None:
    document = writer.kinds()[kind](512, random.Random(seed))
    text = tokenizer.decode(document.ids)
    assert len(document.ids) == len(document.marks) <= 512
    assert tokenizer.encode(text) == document.ids  # as the task's prompt and its answer are read
    pairs = dict(re.findall(r'"([^"]+)": "([^"]+)"', text))
    asked = ASKED.findall(text)
    assert asked and [values + '".' + END for *_, values in asked] == answers(document, tokenizer)
    n_values = 0
    for words, key, written in asked:
        values = written.split('". The value is "')
        n_values += len(values)
        for value in values:
            assert value == (key := pairs[key])
        assert len(values) in ((2, 3) if words == "Begin at" else (1,))
    assert ("Begin at" in text) == ("threads" in kind)
    assert document.marks.count(Mark.CHOICE) == n_values


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("pairs", "604800cbfb73"),
        ("short_threads", "0d5e1d72b7f7"),
        ("threads", "0e7e0ae88385"),
        ("routes", "7de2a86bea96"),
    ],
)
def test_documents_depend_on_their_seed_alone(writer: LookupWriter, kind: str, digest: str) -> None:
    document = writer.kinds()[kind](512, random.Random(7))
    assert hashlib.sha256(repr(document.ids).encode()).hexdigest()[:12] == digest


@settings(max_examples=30)
@given(length=st.sampled_from([256, 512, 1024]), seed=SEEDS)
def test_routes_lead_from_city_to_city(
    writer: LookupWriter, tokenizer: PreTrainedTokenizerFast, length: int, seed: int
) -> None:
    document = writer.routes(length, random.Random(seed))
    text = tokenizer.decode(document.ids)
    assert len(document.ids) == len(document.marks) <= length and tokenizer.encode(text) == document.ids
    context, _, written = text.partition("<Route>.")[0], *text.rpartition("<Route>\n")[1:]
    assert [written] == answers(document, tokenizer)
    ways = {line.partition(",")[0].removeprefix("From "): line for line in context.split("\n") if " take a " in line}
    city, last = re.findall(r"route from (.+?) to (.+?), each", text)[0]
    for line in written.split("\n")[:-1]:
        assert line == ways[city]
        city = line.rpartition(" to ")[2].rstrip(".")
    assert city == last
    assert document.marks.count(Mark.CHOICE) == 2 * written.count(" take a ")
