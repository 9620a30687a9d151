"""How the memory of a GPU divides into weights, activations and KV caches, and what share of these fits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from baklava.models.shape import ModelShape

# Ragged storage against what its entries take, and room that the entries of new tokens grow into
# (`baklava.cache.budgeted`).
KV_OVERHEAD = 1.02
TAIL_ROOM = 1.25


@dataclass(frozen=True)
class Workload:
    """So many sequences of `context` tokens at once, each followed by at most `new_tokens`.

    `rows` of them are read at a time, in one pass or in chunks of `chunk` tokens. The memory of the new tokens is
    theirs: only contexts are compressed.
    """

    context: int
    new_tokens: int
    batch: int
    rows: int
    chunk: int


def activation_bytes(shape: ModelShape, n_tokens: int, *, itemsize: int, rows: int) -> int:
    """Estimate of the peak of a layer's activations for `n_tokens` tokens in one forward pass, KV caches not counted.

    The residual stream and the largest of: its norm, computed in float32 (two copies); queries, keys, values and the
    attention's output (queries and keys once more while they are rotated); the three intermediate tensors of a gated
    MLP. Attention itself is taken to be fused, so that no scores are kept. Besides, the logits of one token per row,
    in float32 and in the model's arithmetic.
    """
    q, kv = shape.n_q_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    norm = 2 * 4 * shape.hidden
    attention = (shape.hidden + 3 * q + 3 * kv) * itemsize
    mlp = (shape.hidden + 3 * shape.intermediate) * itemsize
    per_token = shape.hidden * itemsize + max(norm, attention, mlp)
    return n_tokens * per_token + rows * shape.vocabulary * (4 + itemsize)


@dataclass(frozen=True)
class Division:
    """Bytes of the parts, and the largest share of the contexts' entries with which all fit together.

    `kv_full` are the uncompressed KV caches of all contexts, `kept_whole` what no budget touches: new tokens, sliding
    windows. `reading` is the peak of one way of reading a context, activations and what is not compressed yet:
    `chunked` says which way leaves more.
    """

    kv_full: int
    kept_whole: int
    reading: int
    chunked: bool
    share: float

    @property
    def ratio(self) -> float:
        """The smallest ratio that fits, rounded up to a thousandth; 0 where everything does, 1 where nothing."""
        return min(1.0, max(0.0, math.ceil(1000.0 * (1.0 - self.share) - 1e-9) / 1000.0))


def divide(shape: ModelShape, work: Workload, *, available: int, itemsize: int) -> Division:
    """Divide the `available` bytes that weights leave.

    In one pass each layer is compressed before the next is read, but all tokens have activations at once; in chunks
    few do, but all layers of the sequences being read stay whole to the end of their context. Whichever leaves more
    for the KV caches is taken. Decoding needs the activations of one token per sequence.
    """
    per_token = shape.kv_bytes_per_token(itemsize)
    sequence = work.context * shape.n_layers * per_token
    window = 2 * shape.window_numbers * itemsize  # bytes of one token's key and value
    windows = min(shape.window, work.context + work.new_tokens) * shape.n_windowed * window
    tail = TAIL_ROOM * work.new_tokens * shape.n_layers * per_token
    kept_whole = math.ceil(work.batch * (windows + tail))
    left = available - kept_whole
    all_caches = KV_OVERHEAD * work.batch * sequence

    one_pass = activation_bytes(shape, work.rows * work.context, itemsize=itemsize, rows=work.rows)
    one_pass += work.rows * sequence // shape.n_layers
    chunk = min(work.chunk, work.context)
    mask = chunk * work.context * itemsize
    chunks = activation_bytes(shape, work.rows * chunk, itemsize=itemsize, rows=work.rows) + mask
    chunks += work.rows * sequence
    decoding = activation_bytes(shape, work.batch, itemsize=itemsize, rows=work.batch)

    share_pass = (left - one_pass) / all_caches
    others = KV_OVERHEAD * (work.batch - work.rows) * sequence
    share_chunks = (left - chunks) / others if others else (1.0 if left >= chunks else -1.0)
    chunked = share_chunks > share_pass and share_pass < 1.0
    share = min((left - decoding) / all_caches, share_chunks if chunked else share_pass)
    return Division(work.batch * sequence, kept_whole, chunks if chunked else one_pass, chunked, share)
