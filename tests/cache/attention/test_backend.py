"""Which implementation attends where."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ragged_steps import Case, Step

from baklava.cache.attention import backend, ragged_attention
from baklava.cache.attention.backend import choose_backend

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One with a recent GPU, Triton and a recent PyTorch; the answers for it are not kept for the real one."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(backend, "_has_triton", lambda: True)
    monkeypatch.setattr(backend, "_has_varlen", lambda: True)
    choose_backend.cache_clear()
    yield
    choose_backend.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_on_a_gpu(dtype: torch.dtype) -> None:
    assert choose_backend(GPU, dtype, (128, 128), 30.0) == "triton"
    assert choose_backend(CPU, dtype, (128, 128), 30.0) == "torch"


def test_what_no_kernel_takes() -> None:
    assert choose_backend(GPU, torch.float64, (128, 128), None) == "torch"
    assert choose_backend(GPU, torch.bfloat16, (512, 512), None) == "torch"


def test_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert choose_backend(GPU, torch.float16, (128, 128), None) == "torch"


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_has_triton", lambda: False)
    assert choose_backend(GPU, torch.float16, (128, 128), None) == "varlen"
    assert choose_backend(GPU, torch.float16, (192, 128), None) == "torch"
    assert choose_backend(GPU, torch.float16, (128, 128), 30.0) == "torch"
    assert choose_backend(GPU, torch.float32, (128, 128), None) == "torch"


def test_with_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_has_triton", lambda: False)
    monkeypatch.setattr(backend, "_has_varlen", lambda: False)
    assert choose_backend(GPU, torch.float16, (128, 128), None) == "torch"


def test_ragged_attention_goes_through_the_kernel(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(ragged_attention, "choose_backend", lambda *_: "triton")
    step = Step.of(Case(2, (90, 0, 600, 64), softcap=3.0, n_queries=3, masked=True), device)
    output = ragged_attention.ragged_attention(
        step.query, step.entries, *step.suffix, scaling=step.case.scaling, mask=step.mask, softcap=3.0
    )
    torch.testing.assert_close(output.double(), step.expected(), rtol=0, atol=1e-5)
