"""Every family of language models, multimodal ones too: exact, or refused by its config; never silently wrong."""

from __future__ import annotations

import pytest
from family_outcomes import outcome_of
from tiny_families import FAMILIES, MULTIMODAL
from transformers import CONFIG_MAPPING, PreTrainedConfig
from write_families import COLUMNS, HEADER, PAGE, PARTS, row

from baklava.decoder.config import decoder_of
from baklava.errors import UserError


@pytest.mark.parametrize("family", FAMILIES + MULTIMODAL)
def test_a_tiny_model_does_what_the_page_says(family: str) -> None:
    assert row(family, outcome_of(family)) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_has_these_families_only() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.startswith(HEADER)
    parts = text.removeprefix(HEADER).split("\n## ")[1:]
    for part, (title, families) in zip(parts, PARTS.items(), strict=True):
        rows = part.removeprefix(f"{title}\n{COLUMNS}").splitlines()
        assert [one.split("`")[1] for one in rows] == families


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_config_is_read_or_refused(family: str) -> None:
    if family == "gemma4_assistant":
        pytest.skip("its default config is one that transformers refuses")
    if (reason := refusal(CONFIG_MAPPING[family]())) is None:
        decoder = decoder_of(CONFIG_MAPPING[family]())
        assert decoder.n_q_heads % decoder.n_kv_heads == 0
        assert decoder.budgeted_layers
    else:
        assert "\n" not in reason


def refusal(config: PreTrainedConfig) -> str | None:
    try:
        decoder_of(config)
    except UserError as error:
        return str(error)
    return None
