"""Eviction policies: which entries a KV cache keeps. One file per policy."""

from baklava.eviction.adakv import AdaKV
from baklava.eviction.base import EvictionPolicy
from baklava.eviction.expected_attention import ExpectedAttention
from baklava.eviction.h2o import H2O
from baklava.eviction.keydiff import KeyDiff
from baklava.eviction.knorm import Knorm
from baklava.eviction.random import Random
from baklava.eviction.snapkv import SnapKV
from baklava.eviction.streaming_llm import StreamingLLM
from baklava.eviction.tova import TOVA

POLICIES: dict[str, type[EvictionPolicy]] = {
    policy.family: policy
    for policy in (
        StreamingLLM,
        SnapKV,
        H2O,
        TOVA,
        Knorm,
        KeyDiff,
        ExpectedAttention,
        AdaKV,
        Random,
    )
}

__all__ = [
    "H2O",
    "POLICIES",
    "TOVA",
    "AdaKV",
    "EvictionPolicy",
    "ExpectedAttention",
    "KeyDiff",
    "Knorm",
    "Random",
    "SnapKV",
    "StreamingLLM",
]
