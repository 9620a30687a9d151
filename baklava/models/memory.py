"""Divides a GPU's memory among weights, activations and KV caches, and finds the share of KV entries that fits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from baklava.models.shape import ModelShape

# Bytes of ragged storage relative to its entries, and of the growing storage of new tokens relative to theirs
# (`baklava.cache.budgeted`).
KV_OVERHEAD = 1.02
SUFFIX_OVERHEAD = 1.25


@dataclass(frozen=True)
class Workload:
    """`batch` sequences of `context` tokens at once, each followed by at most `new_tokens` tokens.

    `rows` sequences are read at a time, in one pass or in chunks of `chunk` tokens. Only contexts are compressed; new
    tokens keep all their entries. With `all_layers` no layer is compressed before the last has been read, as eviction
    policies need it whose layers compete.
    """

    context: int
    new_tokens: int
    batch: int
    rows: int
    chunk: int
    all_layers: bool = False


def activation_bytes(shape: ModelShape, n_tokens: int, *, itemsize: int, rows: int) -> int:
    """Estimate the peak of a layer's activations for `n_tokens` tokens in one forward pass, without KV caches.

    This is the residual stream plus the largest of: its norm, computed in float32 (two copies); queries, keys, values
    and the attention's output (queries and keys once more while they are rotated); the three intermediate tensors of a
    gated MLP. Attention is assumed to be fused, so that no scores are stored. The logits of one token per row are
    added, in float32 and in the model's dtype.
    """
    q, kv = shape.n_q_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    norm = 2 * 4 * shape.hidden
    attention = (shape.hidden + 3 * q + 3 * kv) * itemsize
    mlp = (shape.hidden + 3 * shape.intermediate) * itemsize
    per_token = shape.hidden * itemsize + max(norm, attention, mlp)
    return n_tokens * per_token + rows * shape.vocabulary * (4 + itemsize)


@dataclass(frozen=True)
class Division:
    """Bytes of each use of memory, and the largest share of the contexts' entries with which all uses fit together.

    `kv_full`: the uncompressed KV caches of all contexts. `unbudgeted`: entries without a budget, of new tokens and of
    sliding windows. `reading`: the peak while a context is read, of activations and entries not yet compressed; with
    `chunked` contexts are read in chunks, else in one pass, whichever leaves more for the KV caches. `missing`: bytes
    that the least acceptable share takes beyond those available; 0 where it fits.
    """

    kv_full: int
    unbudgeted: int
    reading: int
    chunked: bool
    share: float
    missing: int

    @property
    def ratio(self) -> float:
        """The smallest ratio that fits, rounded up to a thousandth; 0 where everything does, 1 where nothing."""
        return min(1.0, max(0.0, math.ceil(1000.0 * (1.0 - self.share) - 1e-9) / 1000.0))


def divide_memory(
    shape: ModelShape, work: Workload, *, available: int, itemsize: int, least_share: float = 0.0
) -> Division:
    """Divide the `available` bytes that the weights leave free.

    In one pass, each layer is compressed before the next is read (not with `all_layers`), but all tokens have
    activations at once. In chunks,
    few tokens have activations, but all layers of the sequences being read stay uncompressed until their context ends.
    The way that leaves more for the KV caches is chosen, or, where neither leaves the least acceptable share, the one
    that lacks less. Decoding needs the activations of one token per sequence.
    """
    per_token = shape.kv_bytes_per_token(itemsize)
    sequence = work.context * shape.n_layers * per_token
    window = 2 * shape.window_numbers * itemsize  # bytes of one token's key and value
    windows = min(shape.window, work.context + work.new_tokens) * shape.n_windowed * window
    suffix = SUFFIX_OVERHEAD * work.new_tokens * shape.n_layers * per_token
    unbudgeted = math.ceil(work.batch * (windows + suffix))
    left = available - unbudgeted
    all_caches = KV_OVERHEAD * work.batch * sequence

    one_pass = activation_bytes(shape, work.rows * work.context, itemsize=itemsize, rows=work.rows)
    one_pass += work.rows * sequence // (1 if work.all_layers else shape.n_layers)
    chunk = min(work.chunk, work.context)
    mask = chunk * work.context * itemsize
    chunks = activation_bytes(shape, work.rows * chunk, itemsize=itemsize, rows=work.rows) + mask
    chunks += work.rows * sequence
    decoding = activation_bytes(shape, work.batch, itemsize=itemsize, rows=work.batch)

    others = KV_OVERHEAD * (work.batch - work.rows) * sequence  # compressed when the last sequences have been read
    beside = others if work.all_layers else all_caches
    share_pass, share_chunks = _share(left - one_pass, beside), _share(left - chunks, others)
    chunked = share_chunks > share_pass and share_pass < 1.0
    needed_pass, needed_chunks = one_pass + least_share * beside, chunks + least_share * others
    if max(share_pass, share_chunks) < least_share:
        chunked = needed_chunks < needed_pass
    share = min((left - decoding) / all_caches, share_chunks if chunked else share_pass)
    needed = max(needed_chunks if chunked else needed_pass, decoding + least_share * all_caches)
    return Division(
        kv_full=work.batch * sequence,
        unbudgeted=unbudgeted,
        reading=chunks if chunked else one_pass,
        chunked=chunked,
        share=share,
        missing=max(0, math.ceil(needed - left)),
    )


def _share(left: float, full: float) -> float:
    """The share of `full` bytes that `left` bytes hold; where there is nothing to hold, whether any are left."""
    return left / full if full else (1.0 if left >= 0 else -1.0)
