"""What an experiment sets for choices that were replaced is in nobody's way; what belongs to no choice is refused."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from baklava.errors import UserError
from baklava.experiment.choices import GROUPS
from baklava.experiment.compose import compose
from baklava.experiment.schema import ExperimentConfig

CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
composed = cache(lambda *overrides: compose(overrides))


def chosen(config: ExperimentConfig) -> dict[str, dict[str, object]]:
    """Entries by group."""
    return {group: dict(getattr(config, section)) for section, group in GROUPS.items()}


def option(group: str, name: str) -> str:
    """The option that gives an entry: its file below the group's folder."""
    [path] = [path for path in (CONF / group).rglob("*.yaml") if f"\nname: {name}\n" in path.read_text()]
    return path.relative_to(CONF / group).with_suffix("").as_posix()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("group", GROUPS.values())
def test_every_experiment_can_be_narrowed_to_one_choice_of_a_group(experiment: str, group: str) -> None:
    whole = composed(f"experiment={experiment}")
    for name, entry in chosen(whole)[group].items():
        narrowing = [f"experiment={experiment}", f"{group}={option(group, name)}"]
        if group == "allocator" and whole.claims.enabled and name != whole.claims.allocator:
            said = rf"^config: allocator={name}: leaves out {whole.claims.allocator}, .*claims\.enabled"
            with pytest.raises(UserError, match=said):
                compose(narrowing)
            narrowing.append("claims.enabled=false")
        narrowed = compose(narrowing)
        assert chosen(narrowed) == {**chosen(whole), group: {name: entry}}
        assert narrowed.calibration == whole.calibration
        assert narrowed.validation == whole.validation


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@given(data=st.data())
@settings(max_examples=4, deadline=None)
def test_any_part_of_an_experiments_choices_composes(experiment: str, data: st.DataObject) -> None:
    whole = composed(f"experiment={experiment}")
    some = {
        group: data.draw(st.lists(st.sampled_from(sorted(entries)), min_size=1, unique=True))
        for group, entries in chosen(whole).items()
    }
    if whole.claims.enabled and whole.claims.allocator not in some["allocator"]:
        some["allocator"].append(whole.claims.allocator)
    options = {group: ",".join(option(group, name) for name in names) for group, names in some.items()}
    config = compose([f"experiment={experiment}", *(f"{group}=[{names}]" for group, names in options.items())])
    for group, entries in chosen(config).items():
        assert entries == {name: chosen(whole)[group][name] for name in some[group]}
    assert config.claims.yardstick in (None, *config.allocators)


def test_a_yardstick_that_was_left_out_shows_no_gap_unless_it_is_asked_for() -> None:
    narrowing = ["experiment=claims", "allocator=[uniform,baklava]"]
    assert compose(narrowing).claims.yardstick is None
    assert compose([*narrowing, "claims.yardstick=uniform"]).claims.yardstick == "uniform"
    with pytest.raises(UserError, match=r"claims\.yardstick: 'baklava_measured' is none of the allocators"):
        compose([*narrowing, "claims.yardstick=baklava_measured"])


SETTINGS = {
    "models": {"tiny-qwen2": {"dtype": "float32"}},
    "tasks": {"vt": {"n_hops": 3}},
    "allocators": {"baklava": {"slope": 3.0}, "duo": {"streaming": 0.2}},
    "evictions": {"h2o": {"recent": 0.3}},
    "calibration": {"n_profile": 3, "text": {"data": "mine.txt"}},
    "validate": {"calibrations": {"text": {"n_search": 3, "text": {"data": "mine.txt"}}}},
}
CHOICES = {
    "model": ["tiny-llama", "tiny-qwen2"],
    "task": ["niah_single_1", "vt"],
    "allocator": ["uniform", "baklava", "duo"],
    "eviction": ["snapkv", "h2o"],
    "calibration": "text",
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a `conf/` of its own, and an experiment `own` in it that sets something of all that it chooses."""
    shutil.copytree(CONF, tmp_path / "conf")
    write(tmp_path, SETTINGS, CHOICES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, values: dict, choices: dict) -> None:
    defaults = [{f"override /{group}": names} for group, names in choices.items()]
    text = yaml.safe_dump({"defaults": defaults, "name": "own", **values})
    (folder / "conf" / "experiment" / "own.yaml").write_text("# @package _global_\n" + text)


@pytest.mark.parametrize(
    "narrowing",
    ["model=tiny-llama", "task=niah_single_1", "allocator=uniform", "allocator=[baklava]", "eviction=[snapkv]"],
)
def test_settings_of_replaced_choices_are_dropped_and_others_are_kept(own: Path, narrowing: str) -> None:
    whole, narrowed = compose(["experiment=own"]), compose(["experiment=own", narrowing])
    group, _, names = narrowing.partition("=")
    expected = chosen(whole)
    expected[group] = {name: one for name, one in expected[group].items() if name in names.strip("[]").split(",")}
    assert chosen(narrowed) == expected
    assert chosen(whole)["allocator"]["baklava"].build().slope == 3.0  # type: ignore[attr-defined]


def test_the_text_of_a_replaced_calibration_is_dropped(own: Path) -> None:
    whole, narrowed = compose(["experiment=own"]), compose(["experiment=own", "calibration=ruler"])
    assert whole.calibration.text is not None and whole.calibration.text.data == "mine.txt"
    assert narrowed.calibration.text is None
    assert (narrowed.calibration.name, narrowed.calibration.n_profile) == ("ruler", 3)
    compared = "calibration@validate.calibrations.text"
    assert list(compose(["experiment=own", f"~{compared}"]).validation.calibrations) == ["ruler", "mixed"]
    assert whole.validation.calibrations["text"].text == whole.calibration.text


def test_without_any_choice_it_is_said_how_to_choose(own: Path) -> None:
    for section, group in GROUPS.items():
        with pytest.raises(UserError, match=rf"^config: {section}: none chosen; choose one with {group}=NAME$"):
            compose(["experiment=own", f"{group}=[]"])


@pytest.mark.parametrize("written", ["allocators.duo.streaming=0.3", "+allocators.duo.pool=mean"])
def test_settings_that_the_user_writes_for_a_replaced_choice_are_refused_in_his_words(own: Path, written: str) -> None:
    with pytest.raises(UserError) as error:
        compose(["experiment=own", "allocator=uniform", written])
    assert str(error.value) == (
        f"config: {written}: allocators.duo.name is required; "
        "choose duo with allocator=NAME, or give name and family too"
    )


@pytest.mark.parametrize("narrowing", [[], ["task=vt"]])
def test_an_experiment_that_sets_what_it_never_chose_is_named(own: Path, narrowing: list[str]) -> None:
    write(own, {"allocators": {"baklva": {"slope": 3.0}}}, {})
    with pytest.raises(
        UserError, match=r"^config: experiment=own: allocators\.baklva\.name is required; choose baklva"
    ):
        compose(["experiment=own", *narrowing])


def test_an_entry_that_an_experiment_spells_out_needs_no_choice(own: Path) -> None:
    steep = {"name": "steep", "family": "baklava", "search": False, "slope": 8.0}
    write(own, {"allocators": {"steep": steep}}, {})
    assert list(compose(["experiment=own", "allocator=uniform"]).allocators) == ["uniform", "steep"]
