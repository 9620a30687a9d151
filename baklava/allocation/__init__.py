"""Allocators: how much each KV cache keeps. One file per allocator; its import below registers it."""

from baklava.allocation.baklava import Baklava as Baklava
from baklava.allocation.baklava_measured import BaklavaMeasured as BaklavaMeasured
from baklava.allocation.base import Allocator as Allocator
from baklava.allocation.base import FitContext as FitContext
from baklava.allocation.base import SearchedAllocator as SearchedAllocator
from baklava.allocation.base import budgets_of as budgets_of
from baklava.allocation.budgets_file import BudgetsFile as BudgetsFile
from baklava.allocation.duo import Duo as Duo
from baklava.allocation.fitted import Fitted as Fitted
from baklava.allocation.headkv import HeadKV as HeadKV
from baklava.allocation.lu_curve import LuCurve as LuCurve
from baklava.allocation.pyramid import Pyramid as Pyramid
from baklava.allocation.random import Random as Random
from baklava.allocation.squeeze import Squeeze as Squeeze
from baklava.allocation.uniform import Uniform as Uniform
from baklava.system.registry import families_of

ALLOCATORS: dict[str, type[Allocator]] = families_of(Allocator)
