"""Chinese words and the F1 over them, as in LongBench (arXiv 2308.14508, section 4)."""

from __future__ import annotations

import logging
import string
from importlib.util import find_spec

from baklava.errors import UserError
from baklava.tasks.metrics.qa_f1 import token_f1

# The marks that LongBench removes; the left double angle bracket is not among them.
_MARKS = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟"  # noqa: RUF001
    "〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001
)
_PUNCTUATION = str.maketrans("", "", string.punctuation + _MARKS)


def check_jieba() -> None:
    """Raise `UserError` where jieba is not installed."""
    if find_spec("jieba") is None:
        raise UserError("Chinese metrics need jieba; install it with `pip install 'baklava-kv[chinese]'`")


def segments(text: str) -> list[str]:
    """The text cut into words by jieba, nothing left out. Raises `UserError` where jieba is not installed."""
    check_jieba()
    import jieba

    jieba.setLogLevel(logging.WARNING)  # it reports the loading of its dictionary
    return list(jieba.cut(text, cut_all=False))


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and white space."""
    normal = ("".join(segment.lower().translate(_PUNCTUATION).split()) for segment in segments(text))
    return [word for word in normal if word]


def qa_f1_zh(prediction: str, answer: str) -> float:
    """F1 over Chinese words."""
    return token_f1(words(prediction), words(answer))
