"""Eviction policies: which entries a KV cache keeps. One file per policy."""

from baklava.eviction.base import EvictionPolicy
from baklava.eviction.streaming_llm import StreamingLLM

POLICIES: dict[str, type[EvictionPolicy]] = {policy.family: policy for policy in (StreamingLLM,)}

__all__ = ["POLICIES", "EvictionPolicy", "StreamingLLM"]
