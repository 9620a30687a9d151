"""Allocators: how much each KV cache keeps. One file per allocator."""

from baklava.allocate.baklava import Baklava
from baklava.allocate.baklava_measured import BaklavaMeasured
from baklava.allocate.base import Allocator
from baklava.allocate.duo import Duo
from baklava.allocate.fitted import Fitted, budgets_of
from baklava.allocate.headkv import HeadKV
from baklava.allocate.lu_curve import LuCurve
from baklava.allocate.pyramid import Pyramid
from baklava.allocate.random import Random
from baklava.allocate.squeeze import Squeeze
from baklava.allocate.uniform import Uniform

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
