"""Parts of a text are cut where the whole is; nothing is put between them, and nothing after them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import AFTER, BEFORE, BYTE_LEVEL, FAST, KINDS, PUT_SPACE, tokenizer

from baklava.models.encoder import Encoder

WORDS = ["The", "grass", "is", "green.", "sky", "12", "34", "1234567", "7", "Question:", "café", "e", "x + 12"]
ODD = [" ", "  ", "\n", "\n\n", "\n  ", "\t", "é", "e\u0301", "\u0301", "日本", "😀", "ﬁ", "\u00a0", "'", "🇫🇷", ""]
texts = st.lists(st.sampled_from(WORDS + ODD) | st.text(max_size=4), max_size=8).map("".join)
several = st.lists(texts, min_size=2, max_size=4)
ENCODERS = {kind: Encoder(tokenizer(kind)) for kind in KINDS}
every_kind = pytest.mark.parametrize("kind", KINDS)


def token_bytes(kind: str, ids: list[int]) -> bytes:
    """Of a byte-level tokenizer, whose tokens spell bytes in an alphabet of their own."""
    return bytes(ALPHABET[character] for character in "".join(tokenizer(kind).convert_ids_to_tokens(ids)))


def _alphabet() -> dict[str, int]:
    """GPT-2's: printable bytes stand for themselves, the others for the characters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


ALPHABET = _alphabet()


@every_kind
@settings(max_examples=60, deadline=None)
@given(parts=several)
def test_parts_are_the_tokens_of_the_whole(kind: str, parts: list[str]) -> None:
    encoder = ENCODERS[kind]
    whole = tokenizer(kind).encode("".join(parts), add_special_tokens=False)
    encoded = encoder.encode_parts(parts)
    assert len(encoded) == len(parts)
    assert [token for part in encoded for token in part] == whole
    begun = encoder.encode_parts(parts, begin=True)
    assert begun[1:] == encoded[1:]
    assert begun[0] == encoder.special + encoded[0]
    assert encoder.count("".join(parts)) == len(encoder.special) + len(whole)


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@settings(max_examples=150, deadline=None)
@given(parts=several)
def test_a_part_ends_with_the_last_token_that_ends_in_it(kind: str, parts: list[str]) -> None:
    """Byte by byte: what is before a cut lies before the border, and the next token does not."""
    encoded = ENCODERS[kind].encode_parts(parts)
    for n in range(1, len(parts)):
        before = [token for part in encoded[:n] for token in part]
        after = [token for part in encoded[n:] for token in part]
        border = len("".join(parts[:n]).encode())
        assert len(token_bytes(kind, before)) <= border
        if after:
            assert len(token_bytes(kind, [*before, after[0]])) > border


@pytest.mark.parametrize("kind", sorted(set(FAST) - set(BYTE_LEVEL) - {"roberta"}))
@settings(max_examples=60, deadline=None)
@given(context=texts, rest=texts)
def test_a_token_over_the_border_belongs_to_the_later_part(kind: str, context: str, rest: str) -> None:
    """Where a tokenizer tells the true places of its tokens."""
    offsets = tokenizer(kind)(context + rest, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    before, _ = ENCODERS[kind].encode_parts([context, rest])
    ends = [end for _, end in offsets]
    assert all(end <= len(context) for end in ends[: len(before)])
    assert len(before) == len(ends) or ends[len(before)] > len(context)


@settings(max_examples=60, deadline=None)
@given(context=texts, rest=texts)
def test_without_places_the_cut_is_the_end_of_what_context_and_whole_have_in_common(context: str, rest: str) -> None:
    encoder = ENCODERS["pairs"]
    before, after = encoder.encode_parts([context, rest])
    alone = encoder.encode(context)
    assert before == alone[: len(before)]
    assert not after or len(before) == len(alone) or alone[len(before)] != after[0]


@pytest.mark.parametrize(
    ("kind", "parts", "expected"),
    [
        ("gpt2", ["The grass is green. ", "The sky"], ["The grass is green.", " The sky"]),
        ("llama3", ["The key is 12", "34567."], ["The key is ", "1234567."]),
        ("llama3", ["The sky is blue.\n", "\nQuestion: "], ["The sky is blue", ".\n\nQuestion: "]),
        ("llama2", ["The grass is green.", "\n\nQuestion:"], ["The grass is green.", "\n\nQuestion:"]),
    ],
)
def test_where_the_text_is_cut(kind: str, parts: list[str], expected: list[str]) -> None:
    plain = tokenizer(kind)
    assert [plain.decode(part) for part in ENCODERS[kind].encode_parts(parts)] == expected


@every_kind
def test_what_a_tokenizer_puts_before_a_text_stands_there_once_and_what_it_puts_after_it_nowhere(kind: str) -> None:
    plain, encoder, text = tokenizer(kind), ENCODERS[kind], "The grass is green."
    first = [plain.convert_tokens_to_ids(BEFORE[kind])] if kind in BEFORE else []
    assert encoder.special == first
    assert encoder.encode(text, begin=True) == first + plain.encode(text, add_special_tokens=False)
    assert (plain.encode(text)[-1] == plain.eos_token_id) == (kind in AFTER)
    assert plain.eos_token_id not in encoder.encode(text, begin=True)
    assert encoder.encode("<s>" + text, begin=True).count(plain.bos_token_id) == 1


@every_kind
def test_a_text_that_goes_on_gets_no_space_of_its_own(kind: str) -> None:
    encoder = ENCODERS[kind]
    for context, rest in (("The sky is blue.", "\n\nQuestion: what"), ("7.", "\nThe key"), ("Answer:", "\n")):
        both = encoder.encode_parts([context, rest])
        if both[0] == encoder.encode(context):  # no token reaches over the border
            assert encoder.encode_continuation(rest) == both[1]
    assert (encoder.encode_continuation("The key") != encoder.encode("The key")) == (kind in PUT_SPACE)
