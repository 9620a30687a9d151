"""What a user writes as KEY=VALUE is what arrives, on both command lines, or one line says how to write it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from snakemake.cli import parse_config
from snakemake_interface_executor_plugins.utils import format_cli_arg

from baklava.errors import UserError
from baklava.experiment.compose import compose
from baklava.experiment.overrides import Parts, chosen, items, joined, quoted, split
from baklava.experiment.schema import ExperimentConfig
from baklava.experiment.snakemake_config import overrides_of, packed

CONF = Path(__file__).parents[2] / "conf"

# As the schema has it: letters, digits, dots, underscores, hyphens. Many of them look like something else.
LIKE_NUMBERS = ["20241125", "2024_11_25", "1_000", "1e3", "1E-3", "007", "0x10", "0o17", "0b1", "1.5", "6.", "1e400"]
LIKE_OTHERS = [
    "true",
    "False",
    "null",
    "NULL",
    "nan",
    "inf",
    "yes",
    "off",
    "2024-11-25",
    "12h",
    "a.b-c_d",
    "qwen2.5-7b",
]
NAMES = st.sampled_from(LIKE_NUMBERS + LIKE_OTHERS) | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
# Whatever a file may be called, but for ${...}, which refers to another setting.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0\n\r\t\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029")
NAMES_OF_FILES = st.text(CHARACTERS | st.sampled_from("= '\"#{}[](),:;$&\\/~!*?%@"), min_size=1, max_size=30)
PATHS = NAMES_OF_FILES.map("/data/{}".format).filter(lambda path: "${" not in path)


def on_snakemakes_line(overrides: list[str]) -> list[str]:
    """What the workflow makes of them, as arguments of Snakemake's `--config`."""
    experiment, *others = overrides
    return through_snakemake([experiment, f"overrides={joined(others)}"])


def through_snakemake(typed: list[str]) -> list[str]:
    parsed = parse_config(typed)
    return overrides_of(parsed, typed, parsed)


def path_of(overrides: list[str]) -> str:
    return compose(overrides).models["tiny-llama"].path


class TestNames:
    @pytest.mark.parametrize("name", LIKE_NUMBERS + LIKE_OTHERS)
    def test_an_experiment(self, name: str) -> None:
        overrides = ["experiment=demo", f"name={name}"]
        assert on_snakemakes_line(overrides) == overrides
        assert compose(overrides).name == name

    @settings(max_examples=5, deadline=None)
    @given(NAMES)
    def test_every_named_thing(self, name: str) -> None:
        """A model, task, allocator and eviction policy are added under the name, changed by it, and referred to."""
        overrides = [
            "experiment=demo",
            f"+models.{name}={{name: {quoted(name)}, path: /a}}",
            f"models.{name}.path=/b",
            f"+tasks.{name}={{name: {quoted(name)}, family: vt}}",
            f"+allocators.{name}={{name: {quoted(name)}, family: uniform}}",
            f"+evictions.{name}={{name: {quoted(name)}, family: h2o}}",
            f"+evictions.{name}.recent=0.25",
            f"calibration.name={name}",
            f"claims.allocator={name}",
            f"claims.evictions=[{name},h2o]",
        ]
        config = compose(overrides)
        assert compose(on_snakemakes_line(overrides)) == config
        assert (config.models[name].name, config.models[name].path) == (name, "/b")
        assert (config.tasks[name].name, config.allocators[name].name) == (name, name)
        assert (config.evictions[name].name, config.evictions[name].build().recent) == (name, 0.25)
        assert (config.calibration.name, config.claims.allocator) == (name, name)
        assert config.claims.evictions == (name, "h2o")
        assert name not in compose([*overrides, f"~models.{name}"]).models

    @pytest.mark.parametrize("name", ["20241125", "2024_11_25", "1e3", "true", "2024-11-25", "a.b"])
    def test_files_of_the_configuration(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A model's file and an experiment's, chosen by name."""
        conf = tmp_path / "conf"
        shutil.copytree(CONF, conf)
        text = f"# @package _global_\nmodels:\n  '{name}': {{name: '{name}', path: /a, dtype: float32}}\n"
        (conf / "model" / f"{name}.yaml").write_text(text)
        (conf / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\nname: '{name}'\n")
        monkeypatch.chdir(tmp_path)
        overrides = [f"experiment={name}", f"model=[tiny-llama,{name}]", f"models.{name}.path=/b"]
        for some in (overrides, on_snakemakes_line(overrides)):
            config = compose(some)
            assert (config.name, list(config.models)) == (name, ["tiny-llama", name])
            assert config.models[name].path == "/b"
            assert chosen(some, "experiment") == name
        assert list(compose([f"model={name}"]).models) == [name]

    def test_a_file_that_lacks_the_quotes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(CONF, tmp_path / "conf")
        monkeypatch.chdir(tmp_path)
        hint = r"; put quotes around a (text|choice) that looks like a number[^\n]*$"
        for text in ("models: {2024_11_25: {path: /a}}", "models: {m: {name: 1e3, path: /a}}", "name: true"):
            (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
            with pytest.raises(UserError, match=hint):
                compose(["experiment=mine"])
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("defaults: [{override /model: 20241125}]\n")
        with pytest.raises(UserError, match=hint):
            compose(["experiment=mine"])

    def test_null_is_none_where_there_may_be_none_and_a_name_in_quotes(self) -> None:
        assert compose(["claims.yardstick=null"]).claims.yardstick is None
        assert compose(["claims.yardstick='null'"]).claims.yardstick == "null"

    def test_a_revision_of_digits_is_no_number(self) -> None:
        for revision in ("1234567", "12e4567", "0123456"):
            config = compose([f"models.tiny-llama.revision={revision}"])
            assert config.models["tiny-llama"].revision == revision


class TestPaths:
    @settings(max_examples=10, deadline=None)
    @given(PATHS)
    @example("/data/a=b (1).txt")
    @example("/data/it's #1, {draft}.txt")
    @example("/data/x name=other")
    @example("/data/ends with '")
    @example("/data/\"both'")
    @example("/data/back\\slash\\")
    def test_in_quotes_it_arrives_whatever_is_in_it(self, path: str) -> None:
        overrides = ["experiment=demo", f"models.tiny-llama.path={quoted(path)}", "name=mine"]
        for some in (overrides, on_snakemakes_line(overrides)):
            config = compose(some)
            assert (config.models["tiny-llama"].path, config.name) == (path, "mine")

    @settings(max_examples=10, deadline=None)
    @given(PATHS.filter(lambda path: not path.endswith(" ") and "\\" not in path))
    @example("/data/a=b.txt")
    @example("/data/a b.txt")
    @example("/data/(1) #1, it's {x}.txt")
    def test_without_quotes_on_baklavas_line(self, path: str) -> None:
        """But for spaces at its end, and for backslashes, with which Hydra lets one escape what follows."""
        assert path_of([f"models.tiny-llama.path={path}"]) == path

    @pytest.mark.parametrize(
        "path", ["/a b/c", "/a#b", "/a #b", "/a: b", "/a=b", "/it's", "/ü", "/{x}", "/(1)", "/a,b", "/$x", "/x'", '/x"']
    )
    def test_without_quotes_on_snakemakes_line(self, path: str) -> None:
        typed = ["experiment=demo", f"overrides=models.tiny-llama.path={path}"]
        assert path_of(through_snakemake(typed)) == path

    def test_hydras_own_forms_keep_their_meaning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HERE", "/here")
        for written, meant in {
            r"/a\=b\,c": "/a=b,c",
            "'/a b'": "/a b",
            '"/a b"': "/a b",
            "${oc.env:HERE}/x": "/here/x",
            "${oc.env:HERE}/x (1)": "/here/x (1)",
            r"/\${x}": "/${x}",
            "str(7)": "7",
        }.items():
            assert path_of([f"models.tiny-llama.path={written}"]) == meant

    def test_results_may_lie_below_the_home_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        assert compose(["results=~/x"]).results == Path("/home/me/x")
        assert compose(["results='~draft'"]).results == Path("~draft")

    def test_several_values_for_one_setting_are_refused_by_name(self) -> None:
        with pytest.raises(UserError, match=r"^config: ratios: .*'0,0\.5'"):
            compose(["ratios=0,0.5"])

    def test_an_interpolation_that_was_not_meant_says_how_to_write_it(self) -> None:
        for value in ("/a/${x}", "/a/${x", "/a/${}"):
            with pytest.raises(UserError, match=r"models\.tiny-llama\.path.*write \\\$\{ for \$\{"):
                path_of([f"models.tiny-llama.path={value}"])


class TestMappings:
    """Mappings with keys of the user's own: an override replaces them, a file adds to them and leaves out with null."""

    def test_an_override_replaces(self) -> None:
        overrides = ["experiment=smollm2", "claims.gain_at={0.7: 2}", "model=qwen2.5-7b"]
        overrides.append("models.qwen2.5-7b.chat_template_kwargs={enable_thinking: false}")
        for some in (overrides, on_snakemakes_line(overrides)):
            config = compose(some)
            assert config.claims.gain_at == {0.7: 2}
            assert config.models["qwen2.5-7b"].chat_template_kwargs == {"enable_thinking": False}
        assert compose([*overrides, "models.qwen2.5-7b.chat_template_kwargs={a: b}"]).models[
            "qwen2.5-7b"
        ].chat_template_kwargs == {"a": "b"}
        with pytest.raises(UserError, match=r"models\.none-such.* there is no such key"):
            compose(["models.none-such.chat_template_kwargs={a: b}"])

    def test_null_leaves_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(CONF, tmp_path / "conf")
        monkeypatch.chdir(tmp_path)
        mine = "# @package _global_\ndefaults: [smollm2]\nclaims: {gain_at: {0.8: null, 0.7: 2}}\n"
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(mine)
        assert compose(["experiment=mine"]).claims.gain_at == {0.7: 2, 0.95: 8}


class TestSplit:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", []),
            ("  ", []),
            ("a=1", ["a=1"]),
            ("a=1  b.c=x y\n d/e=[0, 0.5]", ["a=1", "b.c=x y", "d/e=[0, 0.5]"]),
            ("+a={b: c, d: 'e f=1'} ~g ++h=", ["+a={b: c, d: 'e f=1'}", "~g", "++h="]),
            ("a='b c=d' e=\"f 'g=\" h=1", ["a='b c=d'", 'e="f \'g="', "h=1"]),
            ("a=it's b=c's", ["a=it's", "b=c's"]),
            ("a='tis b=1", ["a='tis", "b=1"]),
            ("a=[1 b=2", ["a=[1", "b=2"]),
            ("a={x [b=1]} c=2", ["a={x [b=1]}", "c=2"]),
        ],
    )
    def test_at_spaces_before_a_key(self, text: str, expected: list[str]) -> None:
        assert split(text) == expected

    @given(st.lists(st.tuples(st.sampled_from(["a", "+b.c", "++d/e"]), PATHS), max_size=4))
    def test_what_was_joined_is_parted_again(self, given: list[tuple[str, str]]) -> None:
        overrides = [f"{key}={quoted(path)}" for key, path in given]
        assert split(joined(overrides)) == overrides

    @given(st.lists(PATHS, min_size=1, max_size=4))
    def test_items_of_a_list(self, paths: list[str]) -> None:
        assert items(f"[{', '.join(map(quoted, paths))}]") == [quoted(path) for path in paths]

    def test_items_are_as_they_are_written(self) -> None:
        assert items("[]") == items("[ ]") == []
        assert items("[1_000, [2,3], {a: [4,5], b: 'c,]'}]") == ["1_000", "[2,3]", "{a: [4,5], b: 'c,]'}"]
        assert items("1,2") is None

    def test_parts(self) -> None:
        assert Parts.of("++a.b=c=d") == ("++", "a.b", "c=d")
        assert Parts.of("~a=") == ("~", "a", "")
        assert Parts.of("~a") is None


class TestSnakemake:
    def test_nothing_given_is_the_demo(self) -> None:
        assert through_snakemake([]) == ["experiment=demo"]

    @pytest.mark.parametrize("typed", ["overrides=a=1 b='x'", "overrides='a=1 b='x''", "overrides=\"a=1 b='x'\""])
    def test_quotes_at_the_end_are_kept_and_around_the_whole_are_not(self, typed: str) -> None:
        assert through_snakemake([typed]) == ["experiment=demo", "a=1", "b='x'"]

    def test_an_unknown_key_is_named(self) -> None:
        with pytest.raises(UserError, match="--config experimnet: known keys are experiment and overrides"):
            through_snakemake(["experimnet=demo"])

    def test_a_file_of_settings_must_have_texts(self) -> None:
        assert overrides_of({"experiment": "20241125", "overrides": None}, [], {}) == ["experiment=20241125"]
        with pytest.raises(UserError, match="--config experiment: 20241125 is not a text; put it in quotes"):
            overrides_of({"experiment": 20241125}, [], {})

    def test_a_workflow_that_uses_this_one_sets_its_own(self) -> None:
        typed = ["experiment=theirs", "other=1"]
        assert overrides_of({"experiment": "ours"}, typed, parse_config(typed)) == ["experiment=ours"]

    @given(st.lists(PATHS, max_size=3))
    @example(["$HOME `ls` \\ 'x' \"y\""])
    def test_jobs_on_a_cluster_are_told_the_same(self, paths: list[str]) -> None:
        """They get their arguments through a shell."""
        overrides = ["experiment=demo", *(f"a{i}={quoted(path)}" for i, path in enumerate(paths))]
        typed = [overrides[0], f"overrides={joined(overrides[1:])}"]
        _, *passed = shlex.split(format_cli_arg("--config", packed(typed, overrides)))
        assert through_snakemake(passed) == overrides

    def test_arguments_of_others_are_passed_on(self) -> None:
        assert packed(["experiment=demo", "more=1"], ["experiment=demo"]) == ["experiment=demo", "more=1"]
        assert packed(["more=1", "overrides=a='b'"], ["experiment=demo", "a='b'"])[0] == "more=1"


def test_the_schema_survives_names_in_its_files() -> None:
    config = compose(["name=1e3"])
    assert ExperimentConfig.model_validate_json(config.model_dump_json()) == config
