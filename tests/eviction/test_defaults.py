"""The configuration's eviction policies are the classes as they are, and those as the public leaderboard has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from baklava.eviction import POLICIES, PRIOR_FLOOR, AdaKV, EvictionPolicy, ExpectedAttention, SnapKV, StreamingLLM
from baklava.eviction.wrapper import Wrapper

FILES = sorted((Path(__file__).parents[2] / "conf" / "eviction").glob("*.yaml"))


def configured(file: Path) -> EvictionPolicy:
    values: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert values.pop("name") == file.stem
    policy: EvictionPolicy = TypeAdapter(POLICIES[values.pop("family")]).validate_python(values)
    return policy


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_spells_out_the_defaults_of_its_class(file: Path) -> None:
    policy = configured(file)
    while isinstance(policy, Wrapper):
        prior = {"floor": PRIOR_FLOOR} if file.stem.startswith("prior_") else {}
        published = {"floor": 0.0} if file.stem == "layer_defensive" else prior
        assert replace(policy, inner=SnapKV()) == type(policy)(inner=SnapKV(), **published)
        policy = policy.inner
    other = {
        "critical_expected_attention": {"use_vnorm": False},
        "kvzip_plus": {"weighed": True},
        "prior_kvzip": {"floor": 0.5},
        "static_kvzip": {"floor": 1.0},
    }
    assert policy == type(policy)(**other.get(file.stem, {}))


def test_defaults_are_those_of_the_leaderboard() -> None:
    """kvpress 0.5.5, `evaluation/evaluate_registry.py`; `make test-kvpress` compares what is kept."""
    by_name = {file.stem: configured(file) for file in FILES}
    assert by_name["ada_expected_attention"] == AdaKV(inner=ExpectedAttention(epsilon=1e-2), floor=0.2)
    assert by_name["ada_snapkv"] == AdaKV(inner=SnapKV(window_size=64, kernel_size=5), floor=0.2)
    assert by_name["snapkv"] == SnapKV(window_size=64, kernel_size=5)
    assert by_name["streaming_llm"] == StreamingLLM(n_sink=4)
    assert by_name["expected_attention"] == ExpectedAttention(
        n_future_positions=512, n_sink=4, use_covariance=True, use_vnorm=True, epsilon=1e-2
    )
