"""Jobs divide the cores of a machine by what an experiment has to do, whatever else happens to run."""

from __future__ import annotations

import pytest

from baklava.experiment.compose import compose
from baklava.experiment.threads import threads_of


@pytest.mark.parametrize(
    ("cores", "overrides", "threads"),
    [
        (8, [], {"profile": 4, "allocate": 4, "evaluate": 1, "curves": 4}),  # 2 models, 3 tasks, 1 that searches
        (2, [], {"profile": 1, "allocate": 1, "evaluate": 1, "curves": 1}),
        (8, ["model=tiny-llama"], {"profile": 8, "allocate": 8, "evaluate": 2, "curves": 8}),
        (2, ["model=tiny-llama", "task=[vt]"], {"profile": 2, "allocate": 2, "evaluate": 2}),
        (2, ["model=tiny-llama", "task=[vt]", "evaluate.shards=2"], {"profile": 2, "allocate": 2, "evaluate": 1}),
        (8, ["eviction=[h2o,tova]", "resources.evaluate.threads=3"], {"profile": 4, "allocate": 2, "evaluate": 3}),
        (8, ["allocator=uniform"], {"profile": 4, "allocate": 8, "evaluate": 1}),
    ],
)
def test_threads(cores: int, overrides: list[str], threads: dict[str, int]) -> None:
    config = compose(["experiment=demo", *overrides])
    assert {stage: threads_of(stage, config, cores) for stage in threads} == threads
