"""Calibration prompts: reproducible, from streams of their own, checked when read."""

import json

import pytest

from baklava.calibration import Calibration, calibrate
from baklava.config import compose
from baklava.errors import UserError
from baklava.jobs import CalibrateJob
from baklava.layout import Layout

OVERRIDES = ["model=tiny-llama", "calibration.n_profile=2", "calibration.n_search=5", "calibration.length=700"]


def written(folder, *overrides) -> tuple:
    config = compose([*OVERRIDES, *overrides])
    job = CalibrateJob.of(config, Layout(folder, "x"), "tiny-llama")
    calibrate(job)
    return job.prompts, Calibration.load(job.prompts)


def test_the_same_settings_write_the_same_bytes(tmp_path):
    first, _ = written(tmp_path / "a")
    second, _ = written(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_tasks_take_turns_and_answers_belong_to_their_context(tmp_path):
    _, calibration = written(tmp_path)
    prompts = [*calibration.profile, *calibration.search]
    names = ["niah_single_1", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "vt"]
    assert [prompt.task for prompt in prompts] == [*names, *names[:2]]
    for prompt in prompts:
        for part in prompt.answer.replace(",", " ").replace(".", " ").split():
            assert part in prompt.context


def test_another_seed_gives_other_prompts(tmp_path):
    _, one = written(tmp_path / "a")
    _, other = written(tmp_path / "b", "calibration.seed=1")
    assert one.fingerprint != other.fingerprint
    assert not {prompt.context for prompt in one.search} & {prompt.context for prompt in other.search}


def test_evaluation_never_sees_a_calibration_prompt(tmp_path):
    _, calibration = written(tmp_path)
    task = compose([]).calibration.tasks[0].build()
    contexts = {prompt.context for prompt in (*calibration.profile, *calibration.search)}
    for index in range(7):
        sample = task.sample(
            split="evaluation", seed=0, index=index, length=700, count_tokens=lambda text: len(text) // 4
        )
        assert sample.context not in contexts


def test_a_prompt_changed_by_hand_is_refused(tmp_path):
    path, _ = written(tmp_path)
    values = json.loads(path.read_text())
    values["search"][0]["answer"] = " 1234567."
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="do not match their fingerprint"):
        Calibration.load(path)
