"""Random steps of decoding over ragged entries, and what they must give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from baklava.cache.ragged_storage import RaggedEntries

# Of outputs of about 1, and of scores bounded at 50 by a tanh of float32.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2.5e-3}


@dataclass(frozen=True)
class Case:
    """KV cache `c` keeps `lengths[c]` entries; `n_suffix` tokens came since, the last `n_queries` of them ask."""

    batch: int
    lengths: tuple[int, ...]
    group: int = 4
    dims: tuple[int, int] = (64, 64)  # of keys and of values
    n_queries: int = 1
    n_suffix: int = 5
    dtype: torch.dtype = torch.float32
    softcap: float | None = None
    masked: bool = False
    longest: int | None = None  # entries of one program
    seed: int = 0

    @property
    def scaling(self) -> float:
        return self.dims[0] ** -0.5


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch, n_kv_heads = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    length = st.one_of(st.just(0), st.integers(0, 90), st.integers(0, 700))
    lengths = draw(st.lists(length, min_size=batch * n_kv_heads, max_size=batch * n_kv_heads))
    if draw(st.booleans()):
        lengths[draw(st.integers(0, len(lengths) - 1))] = draw(st.integers(1000, 3000))
    n_queries = draw(st.integers(1, 5))
    return Case(
        batch=batch,
        lengths=tuple(lengths),
        group=draw(st.sampled_from([1, 2, 4, 7, 8])),
        dims=(draw(st.sampled_from([64, 128, 256])),) * 2,
        n_queries=n_queries,
        n_suffix=n_queries + draw(st.integers(0, 90)),
        dtype=draw(st.sampled_from(list(TOLERANCE))),
        softcap=draw(st.sampled_from([None, 2.0, 50.0])),
        masked=draw(st.booleans()),
        longest=draw(st.sampled_from([None, 64, 100, 512, 1024])),
        seed=draw(st.integers(0, 2**16)),
    )


@dataclass(frozen=True)
class Step:
    """The tensors of a case, strided as a model and a growing cache have them."""

    case: Case
    query: Tensor  # [B, Hq, Q, D]
    entries: RaggedEntries
    context: tuple[Tensor, Tensor]  # [B, Hkv, T, D], of which `kept` `[B, Hkv, T]`
    kept: Tensor
    suffix: tuple[Tensor, Tensor]  # [B, Hkv, M, D]
    mask: Tensor | None  # [B, 1, Q, M]

    @classmethod
    def of(cls, case: Case, device: str) -> Step:
        random = torch.Generator().manual_seed(case.seed)
        n_kv_heads, n_context = len(case.lengths) // case.batch, max(case.lengths) + 3

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random).to(device, case.dtype)

        query = normal(case.batch, case.n_queries, n_kv_heads * case.group, case.dims[0]).transpose(1, 2) * 2
        context = tuple(normal(case.batch, n_kv_heads, n_context, dim) for dim in case.dims)
        room = tuple(normal(case.batch, n_kv_heads, case.n_suffix + 7, dim) for dim in case.dims)
        order = torch.rand(len(case.lengths), n_context, generator=random).argsort(-1).argsort(-1)
        kept = (order < torch.tensor(case.lengths)[:, None]).to(device)  # [C, T]
        mask = None
        if case.masked:
            visible = torch.rand(case.batch, 1, case.n_queries, case.n_suffix + 9, generator=random) < 0.7
            mask = visible.to(device)[..., 9:]
        return cls(
            case=case,
            query=query,
            entries=RaggedEntries.gather(*context, torch.arange(case.batch, device=device), kept),
            context=context,
            kept=kept.view(case.batch, n_kv_heads, n_context),
            suffix=tuple(one[:, :, : case.n_suffix] for one in room),
            mask=mask,
        )

    def expected(self) -> Tensor:
        """Naive, in float64: full attention, of the context only to what is kept; 0 where a query may see nothing."""
        case = self.case
        keys, values = (
            torch.cat(both, 2).double().repeat_interleave(case.group, 1)
            for both in zip(self.context, self.suffix, strict=True)
        )
        scores = self.query.double() @ keys.transpose(-1, -2) * case.scaling  # [B, Hq, Q, T + M]
        if case.softcap is not None:
            scores = (scores / case.softcap).tanh() * case.softcap
        position = torch.arange(case.n_suffix, device=scores.device)
        suffix = self.mask
        if suffix is None:
            suffix = (position <= position[case.n_suffix - case.n_queries :, None]).expand(case.batch, 1, -1, -1)
        kept = self.kept.repeat_interleave(case.group, 1)[:, :, None]  # [B, Hq, 1, T]
        visible = torch.cat([kept.expand(*scores.shape[:3], -1), suffix.expand(*scores.shape[:3], -1)], -1)
        return scores.masked_fill(~visible, float("-inf")).softmax(-1).nan_to_num() @ values
