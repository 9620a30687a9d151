"""The configuration: everything in `conf/` composes, and every mistake is one line that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from baklava.errors import UserError
from baklava.experiment.compose import compose, compose_training
from baklava.experiment.schema import ExperimentConfig, methods
from baklava.training.recipe import Recipe

CONF = Path(__file__).parents[2] / "conf"
CHOICES = sorted(
    "=".join(path.relative_to(CONF).with_suffix("").as_posix().split("/", 1))
    for path in CONF.rglob("*/[!_]*.yaml")
    if path.parent.name != "training"
)


@pytest.fixture(scope="module")
def default() -> ExperimentConfig:
    return compose()


class TestConfFolder:
    @pytest.mark.parametrize("choice", CHOICES)
    def test_every_choice_composes(self, choice: str, tmp_path: Path) -> None:
        group, name = choice.split("=")
        given = []
        if group in ("task", "allocator"):
            file = CONF / group / f"{name}.yaml"
            shared = file.with_name("_base.yaml")
            values = yaml.safe_load(file.read_text()) | (yaml.safe_load(shared.read_text()) if shared.exists() else {})
            name = name.replace("/", "_")  # the name of a task is also that of a file
            required = [key for key in ("data", "essay", "curve", "path") if key in values and values[key] is None]
            (there := tmp_path / "given").touch()
            given = [f"{group}s.{name}.{key}={there}" for key in required]
            if name == "nolima":  # a folder of several files
                there.unlink()
                (there / "needlesets" / "needle_set.json").mkdir(parents=True)
                (there / "haystack" / "rand_shuffle").mkdir(parents=True)
            if required:
                complaint = rf"config: {group}s: {group} {name}: {required[0]}: .*{group}s\.{name}\."
                with pytest.raises(UserError, match=complaint):
                    compose([choice])
        if group == "eviction" and "decoding=fixed" in (CONF / group / f"{name}.yaml").read_text():
            with pytest.raises(UserError, match=rf"config: evaluate\.decoding: {name} evicts while the model writes"):
                compose([choice])
            given = ["evaluate.decoding=fixed"]
        config = compose([choice, *given])
        chosen = {
            "model": config.models,
            "task": config.tasks,
            "allocator": config.allocators,
            "eviction": config.evictions,
            "calibration": [config.calibration.name],
            "experiment": [config.name],
            "tracking": [name],
        }
        assert list(chosen[group]) == [name]

    @pytest.mark.parametrize(("allocator", "key"), [("uniform_4bit", "bits"), ("baklava_bits", "widths")])
    def test_what_is_scored_while_the_model_writes_is_not_quantised(self, allocator: str, key: str) -> None:
        given = ["evaluate.decoding=fixed", f"allocator=[uniform,{allocator}]"]
        with pytest.raises(UserError, match=rf"^config: allocators\.{allocator}\.{key}: snapkv_d .*leave .* out$"):
            compose([*given, "eviction=snapkv_d"])
        assert list(compose([*given, "eviction=streaming_llm"]).allocators) == ["uniform", allocator]
        assert list(compose([given[0], "eviction=snapkv_d"]).evictions) == ["snapkv_d"]

    @pytest.mark.parametrize("path", sorted((CONF / "training").glob("*.yaml")), ids=lambda path: path.stem)
    def test_every_training_recipe_composes(self, path: Path) -> None:
        recipe = Recipe.model_validate(compose_training(path.stem, ["seed=7"]))
        assert recipe.name == path.stem
        assert recipe.seed == 7

    def test_config_spells_out_every_setting(self) -> None:
        """What is not spelt out can be overridden only with a plus, and nobody finds it."""
        assert missing_keys(ExperimentConfig, everything_spelt_out()) == []

    def test_defaults_of_the_schema_are_those_of_the_files(self) -> None:
        """So that a configuration built in Python means what the same one means on the command line."""
        assert other_defaults(ExperimentConfig, everything_spelt_out()) == []

    def test_experiment_has_its_way_over_the_defaults(self) -> None:
        demo = compose(["experiment=demo"])
        assert demo.name == "demo"
        assert list(demo.models) == ["tiny-llama", "tiny-qwen2"]

    def test_overrides_have_their_way_over_an_experiment(self) -> None:
        config = compose(["experiment=demo", "name=small", "evaluate.n_samples=16", "model=tiny-qwen2"])
        assert (config.name, config.evaluate.n_samples, list(config.models)) == ("small", 16, ["tiny-qwen2"])

    def test_composes_from_any_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: ExperimentConfig
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert compose() == default
        assert list(tmp_path.iterdir()) == []  # Hydra likes to leave folders behind

    def test_conf_of_the_current_folder_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "config.yaml").write_text("mine: true\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=r"^config: "):
            compose()

    @pytest.mark.parametrize(
        ("name", "n_keys", "n_values", "n_queries"),
        [
            ("niah_single_1", 1, 1, 1),
            ("niah_multikey_1", 4, 1, 1),
            ("niah_multivalue", 1, 4, 1),
            ("niah_multiquery", 4, 1, 4),
        ],
    )
    def test_niah_tasks_are_rulers(self, name: str, n_keys: int, n_values: int, n_queries: int) -> None:
        task = compose([f"task={name}"]).tasks[name].build()
        assert (task.n_keys, task.n_values, task.n_queries) == (n_keys, n_values, n_queries)
        assert (task.n_digits, task.max_new_tokens) == (7, 128)

    def test_tasks_take_the_settings_that_their_page_names_and_are_what_they_were_without(self) -> None:
        named = {
            "json_kv": {"n_questions": 4, "depth": 0.5},
            "json_thread": {"n_questions": 4, "depth": 0.5},
            "json_thread_steps": {"n_questions": 4, "depth": 0.5},
            "path_traversal": {"depth": 0.5},
            "graphwalks": {"depth": 0.5},
            "multi_thread": {"depth": 0.5, "direction": "forward"},
            "conditional_needle": {"depth": 0.5},
            "niah_multikey_1": {"n_keys": 16, "n_questions": 16},
        }
        chosen = f"task=[{','.join(named)}]"
        given = [f"tasks.{name}.{key}={value}" for name, own in named.items() for key, value in own.items()]
        plain, changed = compose([chosen]).tasks, compose([chosen, *given]).tasks
        for name, own in named.items():
            before = plain[name].model_dump()
            assert not {"n_questions", "depth", "direction"} & before.keys()  # as in jobs of before
            assert changed[name].model_dump() == {**before, **own}

    def test_vt_is_rulers(self) -> None:
        task = compose(["task=vt"]).tasks["vt"].build()
        assert (task.n_hops, task.n_letters, task.example_length, task.max_new_tokens) == (4, 5, 500, 30)


def everything_spelt_out() -> dict[str, Any]:
    """`conf/config.yaml` with the groups that are one mapping, as plain values."""
    values = yaml.safe_load((CONF / "config.yaml").read_text())
    groups = {name: choice for one in values.pop("defaults") if isinstance(one, dict) for name, choice in one.items()}
    for group in ("calibration", "tracking"):
        values[group] = yaml.safe_load((CONF / group / f"{groups[group]}.yaml").read_text())
    for section, group in (
        ("models", "model"),
        ("tasks", "task"),
        ("allocators", "allocator"),
        ("evictions", "eviction"),
    ):
        assert group in groups
        values[section] = {}  # checked by composing every file
    values["validate"]["calibrations"] = {}  # of the group `calibration`
    return values


def keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def missing_keys(model: type[BaseModel], values: dict[str, Any], prefix: str = "") -> list[str]:
    missing = [prefix + name for name in keys(model) if name not in values]
    for name, inner in submodels(model):
        missing += missing_keys(inner, values.get(name, {}), f"{prefix}{name}.")
    return missing


def other_defaults(model: type[BaseModel], values: dict[str, Any], prefix: str = "") -> list[str]:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value

    others = [
        prefix + name
        for name, field in keys(model).items()
        if not field.is_required() and plain(field.default) != values[name]
    ]
    for name, inner in submodels(model):
        others += other_defaults(inner, values[name], f"{prefix}{name}.")
    return others


def submodels(model: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    return [
        (name, field.annotation)
        for name, field in keys(model).items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    ]


MISTAKES = [
    # values out of range
    ("ratios=[1.0]", "ratios.0", "less than 1"),
    ("ratios=[0.5,-0.1]", "ratios.1", "greater than or equal to 0"),
    ("ratios=[70%]", "ratios.0", "'70%'"),
    ("ratios=[nan]", "ratios.0", "nan"),
    ("ratios=[]", "ratios", "at least one ratio"),
    ("ratios=0.5", "ratios", "0.5"),
    ("ratios=[0.5,0.50]", "ratios", "0.5 occurs again"),
    ("ratios=[0.1,0.1000000001]", "ratios", "0.1 occurs again"),
    ("evaluate.n_samples=-1", "evaluate.n_samples", "-1"),
    ("evaluate.n_samples=many", "evaluate.n_samples", "'many'"),
    ("evaluate.n_samples=2.5", "evaluate.n_samples", "2.5"),
    ("evaluate.length=10", "evaluate.length", "10"),
    (
        "evaluate.length=256",
        "evaluate.length",
        "nothing would be compressed; raise it, or set evaluate.compress_above=0",
    ),
    ("evaluate.protocol=oracle", "evaluate.protocol", "'oracle'"),
    ("evaluate=null", "evaluate", "None"),
    ("calibration.n_profile=0", "calibration.n_profile", "0"),
    ("calibration.tasks=[]", "calibration", "at least one of tasks or a text"),
    ("calibration.text={name: t}", "calibration.text.data", "required"),
    (
        "calibration.text={name: t, data: a.txt, continuation: 600}",
        "calibration",
        "text.continuation: 600 tokens leave",
    ),
    ("search.n_rounds=0", "search.n_rounds", "0"),
    ("summary.confidence=95", "summary.confidence", "95"),
    ("profile.window=0", "profile.window", "0"),
    ("profile.estimators=[guess]", "estimators", "'guess'"),
    ("profile.estimators=[]", "estimators", "value_output_cosine"),
    ("models.tiny-llama.dtype=int8", "models.tiny-llama.dtype", "'int8'"),
    ("models.tiny-llama.device=gpu", "models.tiny-llama.device", "'gpu'"),
    # parameters of tasks, allocators and eviction policies
    ("tasks.vt.family=riddle", "tasks.vt", "unknown task family 'riddle'; known: "),
    ("tasks.vt.n_hops=0", "tasks.vt.n_hops", "0"),
    ("tasks.niah_single_1.n_keys=0", "tasks.niah_single_1.n_keys", "0"),
    ("tasks.niah_single_1.n_queries=2", "tasks.niah_single_1", "n_queries (2) must not be more than n_keys (1)"),
    ("allocators.baklava.family=pie", "allocators.baklava", "unknown allocator 'pie'; known: "),
    ("allocators.baklava.slope=-1", "allocators.baklava.slope", "-1"),
    ("allocators.baklava.floor=2", "allocators.baklava.floor", "2"),
    ("allocators.baklava.whole=1.1", "allocators.baklava.whole", "1.1"),
    ("allocators.baklava.layer_mix=-0.1", "allocators.baklava.layer_mix", "-0.1"),
    ("allocators.baklava.pool=median", "allocators.baklava.pool", "'median'"),
    ("+allocators.a={name: a, family: lu_curve, curve: nowhere.npy}", "allocators", "no such file: nowhere.npy"),
    ("+allocators.a={name: a, family: duo, estimator: guess}", "allocators.a.estimator", "unknown estimator 'guess'"),
    ("+allocators.a={name: a, family: duo, streaming: 1}", "allocators.a.streaming", "less than 1"),
    ("+allocators.a={name: a, family: pyramid, beta: 0.5}", "allocators.a.beta", "0.5"),
    ("allocators.baklava.estimator=guess", "allocators.baklava.estimator", "unknown estimator 'guess'"),
    ("evictions.streaming_llm.family=fifo", "evictions.streaming_llm", "unknown eviction policy 'fifo'"),
    ("evictions.streaming_llm.n_sink=-1", "evictions.streaming_llm.n_sink", "-1"),
    ("+evictions.a={name: a, family: adakv, inner: fifo}", "evictions.a.inner", "unknown eviction policy 'fifo'"),
    ("+evictions.a={name: a, family: adakv, inner: {family: h2o, recent: 2}}", "evictions.a.inner.recent", "2"),
    # unknown keys at each level
    ("nonsense=1", "nonsense", ""),
    ("+nonsense=1", "nonsense", "not permitted"),
    ("evaluate.nonsense=1", "evaluate.nonsense", ""),
    ("+evaluate.nonsense=1", "evaluate.nonsense", "not permitted"),
    ("+models.tiny-llama.nonsense=1", "models.tiny-llama.nonsense", "not permitted"),
    ("+tasks.vt.nonsense=1", "tasks.vt.nonsense", "nexpected keyword"),
    ("+allocators.uniform.nonsense=1", "allocators.uniform.nonsense", "nexpected keyword"),
    ("+evictions.streaming_llm.nonsense=1", "evictions.streaming_llm.nonsense", "nexpected keyword"),
    ("+evictions.a={name: a, family: adakv, inner: {family: h2o, x: 1}}", "evictions.a.inner.x", "nexpected keyword"),
    ("calibration.tasks=[{name: a, family: vt, nonsense: 1}]", "calibration.tasks.0.nonsense", "nexpected keyword"),
    # missing things
    ("~model", "models", "model=NAME"),
    ("model=[]", "models", "model=NAME"),
    ("task=[]", "tasks", "task=NAME"),
    ("+tasks.another.name=another", "tasks.another.family", "required"),
    ("~tasks.vt.family", "tasks.vt.family", "required"),
    ("name=???", "name", "issing"),
    ("evaluate.seed=${nothing}", "evaluate.seed", "nothing"),
    # names that are no folder names
    ("name=../elsewhere", "name", "'../elsewhere'"),
    ("name=/etc", "name", "'/etc'"),
    ("name=..", "name", "'..'"),
    ("name=''", "name", "''"),
    ("name='two words'", "name", "'two words'"),
    (f"name={'x' * 101}", "name", "at most 100"),
    ("tasks.vt.name=../vt", "tasks.vt.name", "'../vt'"),
    ("+tasks={a/b: {name: vt, family: vt}}", "tasks.a/b", "'a/b'"),
    ("tasks.vt.name=other", "tasks", "vt: its name must be 'vt' too, got 'other'"),
    ("+models.tiny-llama.chat_template_kwargs=thinking", "models.tiny-llama.chat_template_kwargs", "dictionary"),
    (
        "+models.tiny-llama.chat_template_kwargs={tokenize: true}",
        "models.tiny-llama.chat_template_kwargs",
        "'tokenize'",
    ),
    ("+models.tiny-llama.chat_template_kwargs={a b: 1}", "models.tiny-llama.chat_template_kwargs", "'a b'"),
    ("+models.tiny-llama.chat_template_kwargs={a: [1]}", "models.tiny-llama.chat_template_kwargs", "a: expected text"),
    ("+models.tiny-llama.chat_template_kwargs={a: nan}", "models.tiny-llama.chat_template_kwargs", "a: expected text"),
    ("evaluate.date=20240726", "evaluate.date", "such as 2024-07-26"),
    ("evaluate.date=2024-02-30", "evaluate.date", "valid date"),
    # group choices and grammar
    ("model=gpt-9", "model/gpt-9", "tiny-llama"),
    ("experiment=nothing", "experiment/nothing", "demo"),
    ("name", "name", "EQUAL"),
    ("name='", "name", ""),
    ("=3", "", "override"),
]


class TestMistakes:
    @pytest.mark.parametrize(("override", "key", "complaint"), MISTAKES, ids=[override for override, _, _ in MISTAKES])
    def test_mistake_is_one_line_that_names_the_key(self, override: str, key: str, complaint: str) -> None:
        with pytest.raises(UserError) as error:
            compose([override])
        message = str(error.value)
        assert message.startswith("config")
        assert key in message
        assert complaint in message
        assert "\n" not in message

    def test_further_mistakes_are_counted(self) -> None:
        with pytest.raises(UserError, match=r"; and 1 more$"):
            compose(["evaluate.n_samples=0", "calibration.n_profile=0"])

    @settings(max_examples=30)
    @given(
        key=st.sampled_from(
            ["name", "task", "tasks.vt", "ratios", "calibration.tasks.0", "hydra.job", "experiment", ""]
        ),
        value=st.sampled_from(
            ["", "null", "{}", "[1]", "'", "${x}", "${oc.env:NOPE}", "???", "a=b", "nan", "9" * 5000]
        ),
        before=st.sampled_from(["", "+", "++", "~"]),
    )
    def test_odd_overrides_are_refused_or_mean_something(self, key: str, value: str, before: str) -> None:
        try:
            compose([f"{before}{key}={value}"])
        except UserError as error:
            message = str(error)
        else:
            return
        assert "\n" not in message

    def test_unknown_training_recipe_lists_the_known_ones(self) -> None:
        with pytest.raises(
            UserError, match="no training recipe for 'nothing'; known: tiny-llama, tiny-llama-long, tiny-qwen2"
        ):
            compose_training("nothing")

    def test_training_recipe_of_another_folder_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"no training recipe for '\.\./model/tiny-llama'"):
            compose_training("../model/tiny-llama")


class TestSchema:
    @pytest.mark.parametrize(
        "overrides",
        [
            ["evaluate.length=257"],
            ["evaluate.length=64", "evaluate.compress_above=0"],
            ["evaluate.length=64", "ratios=[0]"],
        ],
    )
    def test_contexts_may_be_short_where_some_are_compressed_or_none_is_to_be(self, overrides: list[str]) -> None:
        assert compose(overrides).evaluate.length in (64, 257)

    def test_ratios_are_sorted(self) -> None:
        assert compose(["ratios=[0.9,0,0.3]"]).ratios == (0.0, 0.3, 0.9)

    def test_compressed_ratios_leave_out_the_full_cache(self) -> None:
        assert compose(["ratios=[0,0.3]"]).compressed_ratios == (0.3,)

    def test_survives_a_round_trip_through_json(self, default: ExperimentConfig) -> None:
        assert ExperimentConfig.model_validate_json(default.model_dump_json()) == default

    def test_methods_are_allocators_by_eviction_policies(self, default: ExperimentConfig) -> None:
        assert list(methods(default)) == [("uniform", "streaming_llm"), ("baklava", "streaming_llm")]

    def test_a_policy_that_ignores_budgets_comes_once_and_with_allocators_that_quantise(self) -> None:
        both = ["allocator=[duo,baklava,uniform]", "eviction=[kvzip,lava,static_kvzip]", "claims.enabled=false"]
        ignoring = [method for method in methods(compose(both)) if method[1] != "static_kvzip"]
        assert ignoring == [("uniform", "kvzip"), ("uniform", "lava")]
        assert len(list(methods(compose(both)))) == 5
        assert list(methods(compose(["allocator=[baklava]", "eviction=[lava]", "claims.enabled=false"]))) == [
            ("baklava", "lava")
        ]
        quantising = compose(["allocator=[uniform,baklava_bits]", "eviction=[lava]", "claims.enabled=false"])
        assert list(methods(quantising)) == [("uniform", "lava"), ("baklava_bits", "lava")]
        blocks = compose(["allocator=[baklava_blocks,duo]", "eviction=[lava]", "claims.enabled=false"])
        assert list(methods(blocks)) == [("duo", "lava")]

    def test_nothing_is_claimed_of_an_allocator_whose_budgets_are_ignored(self) -> None:
        with pytest.raises(UserError, match=r"claims\.evictions: kvzip ignores budgets, so baklava cannot be better"):
            compose(["claims.enabled=true", "eviction=[kvzip]", "claims.evictions=[kvzip]"])

    def test_variables_of_a_chat_template_keep_their_kinds(self) -> None:
        given = "{enable_thinking: false, effort: low, n: 3, part: 0.5, role: null}"
        models = compose([f"+models.tiny-llama.chat_template_kwargs={given}"]).models
        expected = {"enable_thinking": False, "effort": "low", "n": 3, "part": 0.5, "role": None}
        assert models["tiny-llama"].chat_template_kwargs == expected

    def test_parameters_that_no_file_mentions_can_be_added(self) -> None:
        config = compose(["allocators.baklava.search=false", "allocators.baklava.slope=3"])
        allocator = config.allocators["baklava"].build()
        assert (allocator.name, allocator.search, allocator.slope) == ("baklava", "none", 3.0)


class TestValidation:
    def test_sets_are_those_of_conf_calibration(self, default: ExperimentConfig) -> None:
        assert list(default.validation.calibrations) == ["ruler", "text", "mixed"]
        assert default.validation.calibrations["ruler"] == default.calibration

    def test_a_length_that_leaves_no_context_is_refused(self) -> None:
        lengths = "validate.lengths=[128,1024]"
        with pytest.raises(UserError, match=r"validate\.lengths: 128 tokens are less than twice .*continuation, 256"):
            compose(["calibration=text", "validate.enabled=true", lengths])
        assert compose(["validate.enabled=true", lengths]).validation.lengths == (128, 1024)

    def test_no_length_is_compared_where_none_is_given(self) -> None:
        config = compose(["calibration=text", "validate.enabled=true", "validate.lengths=[]"])
        assert config.validation.lengths == ()


class TestClaims:
    @pytest.mark.parametrize("key", ["allocator", "yardstick"])
    def test_what_is_judged_must_be_evaluated(self, key: str) -> None:
        with pytest.raises(UserError, match=rf"claims\.{key}: 'duo' is none of the allocators \(uniform, baklava\)"):
            compose(["claims.enabled=true", f"claims.{key}=duo"])
        assert getattr(compose([f"claims.{key}=duo"]).claims, key) == "duo"  # nothing is judged
