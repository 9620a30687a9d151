"""The tokenizer of the reference models: any text, digits one by one, always the same."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from baklava.tasks import NeedleInHaystack, VariableTracking
from baklava.tasks.ruler.niah import draw_word_keys
from baklava.training.tokenizer import END, build_tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@settings(max_examples=300)
@given(st.text() | st.text(alphabet=" \n\tAaé1٣.,-'\u200d🥮"))
@example("")
@example("  two  spaces , and . punctuation 's")
@example("naïve — 猫 🥮 \x00 \u2028 \r\n")
@example(f"{END} as text {END}")
def test_any_text_comes_back_as_it_was(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(encode(tokenizer, text)) == text


@given(st.text(alphabet="0123456789 .,a", max_size=30))
def test_every_digit_is_a_token_of_its_own(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    pieces = [tokenizer.decode([token]) for token in encode(tokenizer, text)]
    assert [piece for piece in pieces if re.search(r"\d", piece)] == re.findall(r"\d", text)


def test_no_token_holds_a_digit_and_something_else(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    assert sorted(piece for piece in pieces if re.search(r"\d", piece)) == list("0123456789")


@given(st.text(alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=2, max_size=8))
def test_every_letter_of_a_variable_is_a_token_of_its_own(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    tokens = encode(tokenizer, f"VAR {name} = 12345")
    pieces = [tokenizer.decode([token]) for token in tokens]
    assert "".join(pieces) == f"VAR {name} = 12345"
    assert all(len(re.findall("[A-Z]", piece)) <= 1 for piece in pieces)


def test_has_at_most_4096_entries(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) <= 4096
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1


def test_two_builds_are_equal(tokenizer: PreTrainedTokenizerFast) -> None:
    assert build_tokenizer().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_comes_back_from_its_files(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"A needle — 1234567.{END}\nVAR ABCDE = 12345"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(encode(loaded, text)) == text
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (None, END, END)
    assert loaded.padding_side == "left"


def test_nothing_is_put_around_a_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.encode("text") == encode(tokenizer, "text")
    assert tokenizer.eos_token_id not in tokenizer.encode("text")


@given(st.text() | st.text(alphabet=" \n\tAaé1٣.,-'\u200d🥮"))
@example("VAR ABCDE = VAR FGHIJ\n\nThe special magic number is: 123. don't  two\n\n  \t")
def test_qwen2_s_own_class_splits_alike(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """`AutoTokenizer` takes it for every model of the type qwen2; it composes characters first."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    other = Qwen2Tokenizer(tokenizer.get_vocab(), [tuple(pair) for pair in merges])
    assert encode(other, text) == encode(tokenizer, unicodedata.normalize("NFC", text))


def test_word_keys_take_few_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """A needle of many tokens would leave little room in contexts of 1,024."""
    keys = draw_word_keys(200, random.Random(1))
    assert sum(len(encode(tokenizer, f" {key}")) for key in keys) / len(keys) < 5


@pytest.mark.parametrize(
    "task", [NeedleInHaystack(name="niah"), VariableTracking(name="vt")], ids=lambda task: task.name
)
def test_prompt_and_answer_meet_at_a_token_boundary(
    task: NeedleInHaystack | VariableTracking, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Trained on question and answer apart, a model must meet the same tokens when they are one text."""
    for index in range(20):
        sample = task.sample(
            split="train", seed=0, index=index, length=1024, count_tokens=lambda text: len(tokenizer.encode(text))
        )
        answer = task.reference_answer(sample)
        parts = (sample.context, sample.question + sample.answer_prefix, answer)
        apart = [token for part in parts for token in encode(tokenizer, part)]
        assert encode(tokenizer, "".join(parts)) == apart
