"""Eviction policies decide which entries a KV cache keeps. One file per policy, whose import below registers it."""

from collections.abc import Callable
from dataclasses import replace

from baklava.errors import UserError
from baklava.eviction.adakv import AdaKV as AdaKV
from baklava.eviction.base import EvictionPolicy as EvictionPolicy
from baklava.eviction.critical import Critical as Critical
from baklava.eviction.defensive import Defensive as Defensive
from baklava.eviction.dropkv import DropKV as DropKV
from baklava.eviction.expected_attention import ExpectedAttention as ExpectedAttention
from baklava.eviction.h2o import H2O as H2O
from baklava.eviction.h2o_d import H2ODecoding as H2ODecoding
from baklava.eviction.keydiff import KeyDiff as KeyDiff
from baklava.eviction.keydiff_recent import KeyDiffRecent as KeyDiffRecent
from baklava.eviction.knorm import Knorm as Knorm
from baklava.eviction.kvzip import KVzip as KVzip
from baklava.eviction.lava import Lava as Lava
from baklava.eviction.layer_ada import LayerAda as LayerAda
from baklava.eviction.r_kv import RKV as RKV
from baklava.eviction.random import Random as Random
from baklava.eviction.snapkv import SnapKV as SnapKV
from baklava.eviction.snapkv_d import SnapKVDecoding as SnapKVDecoding
from baklava.eviction.streaming_llm import StreamingLLM as StreamingLLM
from baklava.eviction.tova import TOVA as TOVA
from baklava.system.registry import families_of

POLICIES: dict[str, type[EvictionPolicy]] = families_of(EvictionPolicy)

PRIOR_FLOOR = 0.8  # what a KV cache is sure of where its budget is a prior

_PUBLISHED: dict[str, Callable[[], EvictionPolicy]] = {
    "kvzip_plus": lambda: KVzip(weighed=True),
    "layer_defensive": lambda: LayerAda(inner=Defensive(), floor=0.0),
    "prior_kvzip": lambda: KVzip(floor=0.5),
    "static_kvzip": lambda: KVzip(floor=1.0),
}
_PREFIXES: dict[str, Callable[[EvictionPolicy], EvictionPolicy]] = {
    "ada_": lambda inner: AdaKV(inner=inner),
    "layer_ada_": lambda inner: LayerAda(inner=inner),
    "prior_": lambda inner: LayerAda(inner=inner, floor=PRIOR_FLOOR),
    "critical_": lambda inner: Critical(inner=_unweighted(inner)),
}
# The names that messages list. Others work too: a prefix goes before whatever it can go over.
NAMES = tuple(
    sorted(
        {
            *POLICIES,
            *_PUBLISHED,
            *(f"ada_{family}" for family, policy in POLICIES.items() if policy.level == 0),
            *("critical_snapkv", "critical_expected_attention", "ada_critical_snapkv", "layer_ada_snapkv"),
            *("prior_snapkv", "prior_keydiff_recent"),
        }
    )
)


def policy_named(name: str) -> EvictionPolicy:
    """Make the policy with a name in `NAMES`, e.g. "snapkv" or "ada_snapkv". Raises `UserError` that lists them."""
    if (policy := _made(name)) is None:
        raise UserError(f"unknown eviction policy {name!r}; known: {', '.join(NAMES)}")
    return policy


def _made(name: str) -> EvictionPolicy | None:
    if name in POLICIES:
        return POLICIES[name]()
    if name in _PUBLISHED:
        return _PUBLISHED[name]()
    for prefix, over in _PREFIXES.items():
        if name.startswith(prefix) and (inner := _made(name.removeprefix(prefix))) is not None:
            try:
                return over(inner)
            except UserError:  # it competes already
                return None
    return None


def _unweighted(policy: EvictionPolicy) -> EvictionPolicy:
    """The policy without a weight of its own for values."""
    return replace(policy, use_vnorm=False) if isinstance(policy, ExpectedAttention) else policy
