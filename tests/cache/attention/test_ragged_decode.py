"""The Triton kernel equals full attention with a mask, in float64, whatever the budgets and however they are split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from large_scores import LargeStep, every_half
from ragged_steps import TOLERANCE, Case, Step, cases
from torch import Tensor

pytest.importorskip("triton")

from baklava.cache.attention.triton_decode import ragged_decode

pytestmark = pytest.mark.usefixtures("poisoned")


def decode(step: Step, **other: Any) -> Tensor:
    case = step.case
    given = {"scaling": case.scaling, "mask": step.mask, "softcap": case.softcap, "longest": case.longest}
    return ragged_decode(step.query, step.entries, *step.suffix, **{**given, **other})


def check(case: Case, device: str) -> None:
    step = Step.of(case, device)
    output = decode(step)
    assert output.dtype == case.dtype
    torch.testing.assert_close(output.double(), step.expected(), rtol=0, atol=TOLERANCE[case.dtype])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_random_steps(case: Case, device: str) -> None:
    check(case, device)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 4, 7, 8])
def test_shapes_of_models(group: int, dim: int, dtype: torch.dtype, device: str) -> None:
    check(Case(1, (0, 131), group=group, dims=(dim, dim), n_queries=2, dtype=dtype), device)


@pytest.mark.parametrize("dims", [(8, 8), (80, 80), (96, 96), (192, 128), (24, 40)])
def test_head_dimensions_that_fill_no_block(dims: tuple[int, int], device: str) -> None:
    check(Case(2, (0, 70, 300, 5), dims=dims, n_queries=3), device)


@pytest.mark.parametrize("masked", [False, True])
def test_more_query_rows_than_a_program_takes(masked: bool, device: str) -> None:
    check(Case(2, (130, 0), group=7, n_queries=23, n_suffix=40, masked=masked), device)


@pytest.mark.parametrize("lengths", [(0, 0), (0, 900), (1, 1), (512, 64)])
def test_short_and_empty_caches(lengths: tuple[int, ...], device: str) -> None:
    check(Case(1, lengths), device)


def test_a_query_that_may_look_at_nothing_gets_zeros(device: str) -> None:
    step = Step.of(Case(1, (0, 0), n_queries=2, n_suffix=3, masked=True), device)
    assert step.mask is not None
    step.mask[:, :, 0] = False
    step.mask[:, :, 1] = True
    assert not decode(step)[:, :, 0].any()
    torch.testing.assert_close(decode(step).double(), step.expected(), rtol=0, atol=1e-5)


def test_large_scores_do_not_overflow(device: str) -> None:
    step = Step.of(Case(1, (700, 3)), device)
    step = replace(step, query=step.query * 1e4)
    torch.testing.assert_close(decode(step).double(), step.expected(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", every_half, ids=str)
@pytest.mark.parametrize(("dim", "group"), [(32, 1), (64, 8), (128, 4), (256, 7)])
def test_half_precision_is_as_exact_as_fused_attention(dim: int, group: int, dtype: torch.dtype, device: str) -> None:
    step = LargeStep.of(dim, group, dtype, device)
    output = ragged_decode(step.query, step.entries, *step.suffix, scaling=dim**-0.5)
    assert output.dtype == dtype
    assert step.error(output) <= 1.5 * step.error(step.fused())


def test_equal_results_every_time(device: str) -> None:
    step = Step.of(Case(2, (1500, 0, 70, 3), dtype=torch.bfloat16), device)
    assert torch.equal(decode(step), decode(step))


def test_a_row_does_not_depend_on_the_others(device: str) -> None:
    """With equal stretches, that is: by default they depend on how much there is to do."""
    both = Step.of(Case(2, (1500, 40, 333, 64), longest=128), device)
    caches = torch.tensor([2, 3])
    entries = both.entries.select(caches)
    alone = ragged_decode(
        both.query[1:], entries, *(one[1:] for one in both.suffix), scaling=both.case.scaling, longest=128
    )
    assert torch.equal(alone, decode(both)[1:])
