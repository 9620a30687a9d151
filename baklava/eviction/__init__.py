"""Eviction policies decide which entries a KV cache keeps. One file per policy; `base` has the interface."""

from baklava.errors import UserError
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

# Policies with default parameters, by name: each family, and Ada-KV over each other family.
_ADA = {f"ada_{family}": family for family in POLICIES if family != AdaKV.family}
NAMES = tuple(sorted([*POLICIES, *_ADA]))


def policy_named(name: str) -> EvictionPolicy:
    """Make the policy with a name in `NAMES`, e.g. "snapkv" or "ada_snapkv". Raises `UserError` that lists them."""
    if name in _ADA:
        return AdaKV(inner=POLICIES[_ADA[name]]())
    if name not in POLICIES:
        raise UserError(f"unknown eviction policy {name!r}; known: {', '.join(NAMES)}")
    return POLICIES[name]()


__all__ = [
    "H2O",
    "NAMES",
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
    "policy_named",
]
