"""Allocators: how much each KV cache keeps. One file per allocator."""

from baklava.allocate.baklava import Baklava
from baklava.allocate.base import Allocator
from baklava.allocate.uniform import Uniform

ALLOCATORS: dict[str, type[Allocator]] = {allocator.family: allocator for allocator in (Baklava, Uniform)}

__all__ = ["ALLOCATORS", "Allocator", "Baklava", "Uniform"]
