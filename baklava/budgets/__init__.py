"""The contract between allocation and cache: how many entries each KV cache keeps, and in how many bits."""

from baklava.budgets.bits import Packing as Packing
from baklava.budgets.budgets import COMPRESS_ABOVE as COMPRESS_ABOVE
from baklava.budgets.budgets import SCHEMA as SCHEMA
from baklava.budgets.budgets import TOLERANCE as TOLERANCE
from baklava.budgets.budgets import Budgets as Budgets
from baklava.budgets.budgets import Decoding as Decoding
