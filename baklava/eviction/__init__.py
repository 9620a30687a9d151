"""Eviction policies decide which entries a KV cache keeps. One file per policy, whose import below registers it."""

from baklava.errors import UserError
from baklava.eviction.adakv import AdaKV as AdaKV
from baklava.eviction.base import EvictionPolicy as EvictionPolicy
from baklava.eviction.expected_attention import ExpectedAttention as ExpectedAttention
from baklava.eviction.h2o import H2O as H2O
from baklava.eviction.keydiff import KeyDiff as KeyDiff
from baklava.eviction.keydiff_recent import KeyDiffRecent as KeyDiffRecent
from baklava.eviction.knorm import Knorm as Knorm
from baklava.eviction.random import Random as Random
from baklava.eviction.snapkv import SnapKV as SnapKV
from baklava.eviction.streaming_llm import StreamingLLM as StreamingLLM
from baklava.eviction.tova import TOVA as TOVA
from baklava.system.registry import families_of

POLICIES: dict[str, type[EvictionPolicy]] = families_of(EvictionPolicy)

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
