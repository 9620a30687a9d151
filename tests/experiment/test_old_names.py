"""Keys of `resources` from before stages had one name are still understood."""

from __future__ import annotations

import pytest

from baklava.errors import UserError
from baklava.experiment.compose import compose
from baklava.experiment.old_names import STAGES_BEFORE, under_new_names
from baklava.experiment.stages import STAGES


@pytest.mark.parametrize(("old", "stage"), STAGES_BEFORE.items())
def test_an_old_name_sets_what_the_new_one_does(old: str, stage: str) -> None:
    plain = compose().resources_of(stage)
    for override in (
        f"resources.{old}.mem_mb=77",
        f"++resources.{old}.mem_mb=77",
        f"resources={{{old}: {{mem_mb: 77}}}}",
    ):
        assert compose([override]).resources_of(stage) == plain.model_copy(update={"mem_mb": 77})


def test_an_experiments_file_may_hold_old_names() -> None:
    values = {"records": {"mem_mb": 5}, "evaluate": {"mem_mb": 1, "runtime": 2}, "prompts": {"runtime": 3}}
    assert under_new_names(values) == {"evaluate": {"mem_mb": 5, "runtime": 2}, "calibrate": {"runtime": 3}}


def test_new_names_are_stages() -> None:
    assert set(STAGES_BEFORE.values()) <= set(STAGES)
    with pytest.raises(UserError, match=r"^config: resources.nothing: no stage is called so; known: calibrate, "):
        compose(["+resources.nothing.mem_mb=5"])


def test_a_stage_without_an_entry_has_resources() -> None:
    assert compose().resources_of("merge").mem_mb > 0
