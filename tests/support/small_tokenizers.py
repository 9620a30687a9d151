"""Small tokenizers of every kind, trained on a few lines: they differ in what they do at borders, spaces and ends."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

LINES = [
    "The grass is green.  The sky is blue.\n\nQuestion: what is the key? Answer: 1234567.",
    "def f(x):\n    return x + 12\n\n\n  Ça va, naïve café? 99 bottles, 1234 keys\n  and  more\t spaces.",
    "The key is 12 34 567.\nThe key is seven. The grass is green.\n The sky is blue.",
] * 20
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SPECIALS = list(SPECIAL.values())
LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _around(raw: Tokenizer, template: str) -> Any:
    tokens = [(token, raw.token_to_id(token)) for token in SPECIALS if token in template]
    return processors.TemplateProcessing(single=template, special_tokens=tokens)


def _bytes(pre: Any, *, n: int = 420, normalizer: Any = None) -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        raw.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=n,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(LINES, trainer)
    return raw


def gpt2() -> Tokenizer:
    """Words with the space before them; places are told without these spaces."""
    raw = _bytes(pre_tokenizers.ByteLevel(add_prefix_space=False))
    raw.post_processor = processors.ByteLevel(trim_offsets=True)
    return raw


def llama3() -> Tokenizer:
    """Digits by threes, runs of spaces and lines; a token before every text."""
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated")
    raw = _bytes(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    raw.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), _around(raw, "<s> $A")])
    return raw


def unsplit() -> Tokenizer:
    """Merges reach over words and lines, and the places of tokens are told without the spaces around them."""
    raw = _bytes(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), n=600)
    raw.post_processor = processors.ByteLevel(trim_offsets=True)
    return raw


def roberta() -> Tokenizer:
    """A space before every text, a token before and one after it."""
    raw = _bytes(pre_tokenizers.ByteLevel(add_prefix_space=True))
    raw.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), _around(raw, "<s> $A </s>")])
    return raw


def composed() -> Tokenizer:
    """Characters are composed (NFC) before they are cut."""
    return _bytes(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizer=normalizers.NFC())


def llama2() -> Tokenizer:
    """A space before every text, merges over words, bytes for what is in no token; a token before every text."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.train_from_iterator(
        [line.replace("\n", " ") for line in LINES],
        trainers.BpeTrainer(vocab_size=600, special_tokens=tokens, show_progress=False),
    )
    raw.post_processor = _around(raw, "<s> $A")
    return raw


def unigram() -> Tokenizer:
    """The likeliest pieces, words with the space before them; a token after every text."""
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    raw.train_from_iterator(LINES, trainer)
    raw.post_processor = _around(raw, "$A </s>")
    return raw


def bert() -> Tokenizer:
    """Pieces of words, spaces are lost; a token before every text and one after it."""
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    raw.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIALS, show_progress=False)
    )
    raw.post_processor = _around(raw, "<s> $A </s>")
    return raw


class Pairs(PreTrainedTokenizer):
    """Written in Python, so that it tells no places: two characters to a token, words with a space before them."""

    def __init__(self, **more: Any):
        self._pieces = SPECIALS.copy()
        super().__init__(**SPECIAL, **more)

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def get_vocab(self) -> dict[str, int]:
        return {piece: n for n, piece in enumerate(self._pieces)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        words = text.replace(" ", " ▁").split(" ")
        return [word[i : i + 2] for word in words for i in range(0, len(word), 2)]

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self._pieces:
            self._pieces.append(token)
        return self._pieces.index(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._pieces[index]

    def build_inputs_with_special_tokens(self, one: list[int], other: list[int] | None = None) -> list[int]:
        return [self.bos_token_id, *one, *(other or []), self.eos_token_id]


BYTE_LEVEL = {"gpt2": gpt2, "llama3": llama3, "unsplit": unsplit}  # nothing is added, lost or changed
FAST = {**BYTE_LEVEL, "roberta": roberta, "composed": composed, "llama2": llama2, "unigram": unigram, "bert": bert}
KINDS = (*FAST, "pairs")
BEFORE = {"llama3": "<s>", "roberta": "<s>", "llama2": "<s>", "bert": "<s>", "pairs": "<s>"}
AFTER = ("roberta", "unigram", "bert", "pairs")  # a token after every text, which would end a prompt
PUT_SPACE = ("roberta", "llama2", "unigram")


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    return Pairs() if kind == "pairs" else PreTrainedTokenizerFast(tokenizer_object=FAST[kind](), **SPECIAL)
