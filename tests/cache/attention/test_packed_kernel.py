"""The Triton kernel that reads codes equals plain PyTorch, whatever is packed and whatever is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from baklava.budgets.bits import Packing
from baklava.cache.attention import ragged_attention as attention
from baklava.cache.attention import triton_packed
from baklava.cache.ragged_storage import RaggedEntries

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize(
    ("pair", "dims", "group", "n_queries", "softcap", "dtype"),
    [
        ((8, 8), (64, 64), 1, 1, None, torch.float32),
        ((4, 4), (64, 64), 3, 1, None, torch.bfloat16),
        ((2, 2), (128, 128), 4, 2, 5.0, torch.float32),
        ((4, 2), (96, 64), 7, 3, None, torch.float16),
        ((16, 4), (32, 32), 2, 40, None, torch.bfloat16),
        ((2, 16), (8, 8), 2, 1, None, torch.float32),
    ],
)
def test_equal_to_plain_pytorch(
    pair: tuple[int, int],
    dims: tuple[int, int],
    group: int,
    n_queries: int,
    softcap: float | None,
    dtype: torch.dtype,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts, length = [0, 45, 300, 5, 133, 420], 420
    random = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(device, dtype)

    keys, values = (normal(2, 3, length, dim) for dim in dims)
    suffix = [normal(2, 3, n_queries + 2, dim) for dim in dims]
    query = normal(2, 3 * group, n_queries, dims[0])
    kept = (torch.rand(6, length, generator=random).argsort(-1) < torch.tensor(counts)[:, None]).to(device)
    bits = torch.tensor(pair).expand(6, 2).clone()
    bits[4] = 16  # whose entries all stay as they are
    bits[2] = 8
    entries = RaggedEntries.gather(
        keys, values, torch.arange(2, device=device), kept, bits=bits, packing=Packing(sinks=3, newest=7)
    )
    assert len(entries.packed) == len({pair, (8, 8)})
    calls: list[int] = []
    attend = triton_packed._attend
    monkeypatch.setattr(triton_packed, "_attend", lambda *given: calls.append(1) or attend(*given))
    outputs = []
    for backend in ("torch", "triton"):
        monkeypatch.setattr(attention, "choose_backend", lambda *_, backend=backend: backend)
        outputs.append(attention.ragged_attention(query, entries, *suffix, scaling=dims[0] ** -0.5, softcap=softcap))
        assert len(calls) == (len(entries.packed) if backend == "triton" else 0)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2 if dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(outputs[1], outputs[0], rtol=tolerance, atol=tolerance)
