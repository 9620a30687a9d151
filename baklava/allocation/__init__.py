"""Allocators: how much each KV cache keeps. One file per allocator."""

from baklava.allocation.baklava import Baklava
from baklava.allocation.baklava_measured import BaklavaMeasured
from baklava.allocation.base import Allocator
from baklava.allocation.duo import Duo
from baklava.allocation.fitted import Fitted, budgets_of
from baklava.allocation.headkv import HeadKV
from baklava.allocation.lu_curve import LuCurve
from baklava.allocation.pyramid import Pyramid
from baklava.allocation.random import Random
from baklava.allocation.squeeze import Squeeze
from baklava.allocation.uniform import Uniform

ALLOCATORS: dict[str, type[Allocator]] = {
    allocator.family: allocator
    for allocator in (Baklava, BaklavaMeasured, Duo, HeadKV, LuCurve, Pyramid, Random, Squeeze, Uniform)
}

__all__ = [
    "ALLOCATORS",
    "Allocator",
    "Baklava",
    "BaklavaMeasured",
    "Duo",
    "Fitted",
    "HeadKV",
    "LuCurve",
    "Pyramid",
    "Random",
    "Squeeze",
    "Uniform",
    "budgets_of",
]
