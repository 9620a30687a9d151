"""The tokenizer of both reference models: byte-level BPE; every digit and every letter of a name is a token.

It splits text as Qwen2 does, so that `AutoTokenizer`, which reads every model of the type qwen2 with Qwen2's own class,
yields the same tokens as the file that we save (up to Qwen2's NFC normalisation of decomposed characters).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from baklava.tasks.ruler import niah, vt
from baklava.tasks.text.noise import NOISE_LINE
from baklava.tasks.text.python_docs import load_english_text

VOCAB_SIZE = 4096
END = "<|endoftext|>"  # as in Qwen2: the end of an answer, and padding

# How Qwen2 splits text: contractions, words with the character before them, digits, punctuation, line ends, spaces.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Finer, for learning merges only: a capital starts a piece, so that no merge joins it to the characters before it.
TRAINING_PIECES = PIECES.replace(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{Lu}\p{Ll}*|[^\r\n\p{L}\p{N}]?[^\P{L}\p{Lu}]+")


def _make_splitter(pieces: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _write_corpus(seed: int) -> Iterator[str]:
    """Yield text in the proportions that the reference models read: task prompts, word keys, English."""
    rng = random.Random(f"tokenizer/{seed}")
    for _ in range(2_000):
        keys = niah.draw_word_keys(20, rng)
        yield "\n".join(niah.write_needle(key, str(rng.randrange(10**7))) for key in keys)
        for plural in (False, True):
            question = "".join(niah.write_question(keys[:1], plural=plural))
            yield f"{niah.write_header(plural=plural)}{NOISE_LINE}\n{question}"
        chain = vt.Chain.draw(n_hops=1, n_letters=5, rng=rng)
        yield vt.HEADER + "\n".join(chain.statements()) + "\n" + "".join(chain.question())
    yield load_english_text()


def build_tokenizer(*, seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer. Round-trips any UTF-8 text, since every byte is in the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _make_splitter(TRAINING_PIECES)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(END, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_write_corpus(seed), trainer)
    tokenizer.pre_tokenizer = _make_splitter(PIECES)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
