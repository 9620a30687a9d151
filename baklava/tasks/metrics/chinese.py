"""Chinese words and the F1 over them, as in LongBench (arXiv 2308.14508, section 4)."""

from __future__ import annotations

import logging
import string
from importlib.util import find_spec

from baklava.errors import UserError
from baklava.tasks.metrics.qa_f1 import token_f1

# The marks that LongBench removes; the left double angle bracket is not among them.
MARKS = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟"  # noqa: RUF001
    "〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001
)
_PUNCTUATION = str.maketrans("", "", string.punctuation + MARKS)


def check_jieba() -> None:
    """Raise `UserError` if jieba is not installed."""
    if find_spec("jieba") is None:
        raise UserError("Chinese metrics need jieba; install it with `pip install 'baklava-kv[chinese]'`")


def cut_segments(text: str) -> list[str]:
    """Cut the complete text into words with jieba. Raises `UserError` if jieba is not installed."""
    check_jieba()
    import jieba

    jieba.setLogLevel(logging.WARNING)  # it logs that it loads its dictionary
    return list(jieba.cut(text, cut_all=False))


def split_words(text: str) -> list[str]:
    """Split a text into lower-case words without punctuation and white space."""
    normal = ("".join(segment.lower().translate(_PUNCTUATION).split()) for segment in cut_segments(text))
    return [word for word in normal if word]


def qa_f1_zh(prediction: str, answer: str) -> float:
    """F1 over Chinese words."""
    return token_f1(split_words(prediction), split_words(answer))
