"""The one tokenizer of the reference models: byte-level BPE, every digit and every lone capital a token of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from baklava.tasks import niah, vt
from baklava.tasks.haystack import NOISE_LINE
from baklava.training.english import english_text

VOCAB_SIZE = 2048
BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"

# Words with their leading space, then single capitals and digits, then punctuation, then the space that is left.
PIECES = r" ?\p{Lu}?[\p{Ll}\p{Lo}\p{Lm}\p{Lt}\p{M}]+|\p{Lu}|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _corpus(seed: int) -> Iterator[str]:
    """Text in the proportions that the reference models read: task prompts, word keys, English."""
    rng = random.Random(f"tokenizer/{seed}")
    for _ in range(2_000):
        keys = niah.word_keys(20, rng)
        yield "\n".join(niah.needle(key, str(rng.randrange(10**7))) for key in keys)
        for plural in (False, True):
            yield niah.header(plural=plural) + NOISE_LINE + "\n" + "".join(niah.question(keys[:1], plural=plural))
        chain = vt.Chain.draw(n_hops=1, n_letters=5, rng=rng)
        yield vt.HEADER + "\n".join(chain.statements()) + "\n" + "".join(chain.question())
    yield english_text()


def build_tokenizer(*, seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer. Round-trips any UTF-8 text, since every byte is in the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True) for token in (PAD, BEGIN, END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(folder: Path, *, seed: int = 0) -> None:
    build_tokenizer(seed=seed).save_pretrained(folder)
