"""Calibration prompts: reproducible, from streams of their own, checked when read."""

import json
from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import AFTER, KINDS
from small_tokenizers import tokenizer as of_kind

from baklava.calibration.prompts import Calibration, Prompt
from baklava.calibration.run import calibrate
from baklava.errors import UserError
from baklava.experiment.compose import compose
from baklava.experiment.jobs import CalibrateJob
from baklava.experiment.paths import ExperimentPaths
from baklava.models.load import LoadedModel, load_model
from baklava.profiling.run import profile_prompts
from baklava.tasks.base import SPLITS, Task, random_stream

OVERRIDES = ["model=tiny-llama", "calibration.n_profile=2", "calibration.n_search=5", "calibration.length=700"]


def written(folder, *overrides) -> tuple:
    config = compose([*OVERRIDES, *overrides])
    job = CalibrateJob.of(config, ExperimentPaths(folder, "x"), "tiny-llama")
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


def test_question_aware_prompts_have_their_question_in_the_context(tmp_path):
    plain, aware = (
        written(tmp_path / protocol, f"calibration.protocol={protocol}")[1].search
        for protocol in ("question_agnostic", "question_aware")
    )
    for prompt, moved in zip(plain, aware, strict=True):
        assert moved.context.startswith(prompt.context)
        assert moved.context + moved.question == prompt.context + prompt.question
        assert 0 < len(moved.question) < len(prompt.question)
        assert moved.answer == prompt.answer


def test_a_task_without_a_question_is_refused(tmp_path):
    task = "{name: plain, family: continuation, data: standin, max_new_tokens: 32}"
    with pytest.raises(UserError, match=r"^calibration\.tasks: task plain asks nothing"):
        written(tmp_path, f"calibration.tasks=[{task}]")


@pytest.mark.parametrize(
    ("empty", "answers", "said"), [("", ["x"], "no context"), ("The boats left. ", [""], "no answer")]
)
def test_a_sample_without_a_context_or_an_answer_is_refused(tmp_path, empty, answers, said):
    row = {"context": empty, "question": "Where? ", "answer_prefix": "They are ", "answers": answers}
    (data := tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    task = f"{{name: mine, family: jsonl, data: {data}}}"
    with pytest.raises(UserError, match=rf"^calibration\.tasks: task mine: its sample 0 has {said}; leave"):
        written(tmp_path, f"calibration.tasks=[{task}]")


@pytest.mark.parametrize("parts", [((), ("search",)), (("profile",), ()), ((), ())])
def test_prompts_for_one_purpose_alone_are_refused(tmp_path, parts):
    profile, search = ([Prompt(name, 0, "a", "b", "c") for name in names] for names in parts)
    Calibration(tuple(profile), tuple(search)).save(tmp_path / "c.json")
    with pytest.raises(
        UserError, match=r"c\.json: no prompts to profile, or none to guide the search; make them again"
    ):
        Calibration.load(tmp_path / "c.json")


def test_another_seed_gives_other_prompts(tmp_path):
    _, first = written(tmp_path / "a")
    _, other = written(tmp_path / "b", "calibration.seed=1")
    assert first.fingerprint != other.fingerprint
    assert not {prompt.context for prompt in first.search} & {prompt.context for prompt in other.search}


def test_evaluation_never_sees_a_calibration_prompt(tmp_path):
    _, calibration = written(tmp_path)
    task = compose([]).calibration.tasks[0].build()
    contexts = {prompt.context for prompt in (*calibration.profile, *calibration.search)}
    for index in range(7):
        sample = task.sample(
            split="evaluation", seed=0, index=index, length=700, count_tokens=lambda text: len(text) // 4
        )
        assert sample.context not in contexts


@given(
    st.permutations(SPLITS),
    st.lists(st.tuples(st.text(max_size=20), st.integers(), st.integers()), min_size=2, max_size=2),
)
def test_streams_of_different_splits_are_never_the_same(splits, streams):
    states = [
        random_stream(split=split, name=name, seed=seed, index=index).getstate()
        for split, (name, seed, index) in zip(splits, streams, strict=False)
    ]
    assert states[0] != states[1]


def test_no_split_is_the_beginning_of_another():
    """A stream's seed is `split/...`, so that no name and no number can turn one split into another."""
    for split, other in permutations(SPLITS, 2):
        assert not f"{split}/".startswith(f"{other}/")
    with pytest.raises(ValueError, match="unknown split 'test'"):
        random_stream(split="test", name="x", seed=0, index=0)


def test_calibration_draws_from_its_own_split_alone(tmp_path, monkeypatch):
    asked = []
    original = Task.random_stream

    def recorded(self, **stream):
        asked.append(stream["split"])
        return original(self, **stream)

    monkeypatch.setattr(Task, "random_stream", recorded)
    written(tmp_path)
    assert len(asked) >= 7
    assert set(asked) == {"calibration"}


def test_every_position_after_the_context_of_a_task_looks_back(tmp_path):
    _, calibration = written(tmp_path)
    for prompt in calibration.profile:
        assert prompt.context_dependent_positions(100, 7) == list(range(100, 107))
        assert prompt.ends


def test_a_prompt_changed_by_hand_is_refused(tmp_path):
    path, _ = written(tmp_path)
    values = json.loads(path.read_text())
    del values["sha256"]
    values["search"][0]["answer"] = " 1234567."
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="do not match their fingerprint"):
        Calibration.load(path)


TEXT = ["calibration=text", "calibration.text.continuation=64", "calibration.length=256", "calibration.n_search=3"]


@pytest.fixture(scope="module")
def of_text(tmp_path_factory) -> Calibration:
    _, calibration = written(tmp_path_factory.mktemp("text"), *TEXT)
    return calibration


class TestText:
    def test_prompts_are_pieces_of_the_text_that_do_not_overlap(self, tmp_path):
        path = tmp_path / "mine.txt"
        path.write_text(text := " ".join(f"word{i}" for i in range(4000)))
        _, calibration = written(tmp_path, *TEXT, f"calibration.text.data={path}")
        spans = []
        for prompt in (*calibration.profile, *calibration.search):
            piece = prompt.context + prompt.question + prompt.answer
            assert text.count(piece) == 1
            spans.append((text.index(piece), len(piece)))
        spans.sort()
        assert len(spans) == 5
        assert all(start + n <= after for (start, n), (after, _) in pairwise(spans))

    def test_prompts_have_the_length_asked_for_and_do_not_end(self, of_text):
        loaded = load_model(compose(["model=tiny-llama"]).models["tiny-llama"])
        for prompt in (*of_text.profile, *of_text.search):
            context, question, answer = prompt.token_ids(loaded)
            assert 0.85 * 192 <= len(context) <= 192
            assert 1 <= len(question) <= 8
            assert 0.8 * 56 <= len(answer) <= 56
            assert not prompt.ends
            assert answer[-1] != loaded.tokenizer.eos_token_id
            assert len(prompt.look_back) == round(0.1 * (len(question) + len(answer) - 1))
            assert list(prompt.look_back) == sorted(set(prompt.look_back))

    def test_profiling_looks_at_them(self, of_text):
        config = compose(["model=tiny-llama"])
        profile = profile_prompts(load_model(config.models["tiny-llama"]), of_text.profile, config.profile)
        assert (profile.head_importance["eviction_shift"] > 0).all()

    def test_the_same_settings_write_the_same_prompts_and_another_seed_others(self, of_text, tmp_path):
        _, again = written(tmp_path / "a", *TEXT)
        _, other = written(tmp_path / "b", *TEXT, "calibration.seed=1")
        assert again == of_text
        assert not {prompt.context for prompt in other.search} & {prompt.context for prompt in of_text.search}

    def test_rows_of_a_file_are_documents_of_their_own(self, tmp_path):
        path = tmp_path / "mine.jsonl"
        words = [" ".join(f"{letter}{i}" for i in range(400)) for letter in "abcdefg"]
        rows = [*words, "too short"]
        path.write_text("".join(json.dumps({"body": row}) + "\n" for row in rows))
        _, calibration = written(tmp_path, *TEXT, f"calibration.text.data={path}", "calibration.text.field=body")
        contexts = [prompt.context for prompt in (*calibration.profile, *calibration.search)]
        assert len({context[0] for context in contexts}) == 5  # documents take turns
        assert all(any(context in row for row in rows) for context in contexts)

    def test_too_little_text_is_one_line(self, tmp_path):
        path = tmp_path / "short.txt"
        path.write_text("One sentence is not enough. " * 3)
        with pytest.raises(
            UserError, match=r"short\.txt has 0 pieces of 256 tokens, and 5 calibration prompts are asked"
        ):
            written(tmp_path, *TEXT, f"calibration.text.data={path}")

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"text text: data: no such file or folder: .*nowhere\.txt"):
            written(tmp_path, *TEXT, f"calibration.text.data={tmp_path}/nowhere.txt")

    def test_mixed_takes_turns_with_the_tasks(self, tmp_path):
        _, calibration = written(tmp_path, *TEXT, "calibration=mixed", "calibration.length=700")
        names = [prompt.task for prompt in (*calibration.profile, *calibration.search)]
        assert names == ["niah_single_1", "text", "niah_multikey_1", "text", "niah_multivalue"]

    def test_positions_come_back_from_the_file(self, of_text, tmp_path):
        path = tmp_path / "prompts.json"
        of_text.save(path)
        assert Calibration.load(path) == of_text
        values = json.loads(path.read_text())
        del values["sha256"]
        values["profile"][0]["look_back"] = [0]
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match="do not match their fingerprint"):
            Calibration.load(path)


def test_positions_are_part_of_the_fingerprint():
    plain, marked = (Calibration((Prompt("t", 0, "a", "b", "c", look_back),), ()) for look_back in (None, (0, 1)))
    assert plain.fingerprint != marked.fingerprint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends", [True, False])
def test_tokens_are_those_of_one_text_and_only_an_answer_ends_it(kind, ends):
    tokenizer = of_kind(kind)
    loaded = LoadedModel("mine", None, tokenizer)
    prompt = Prompt("t", 0, "A fox ate 12", "34 figs.\n\nWhat is", " left? 5", ends=ends)
    context, question, answer = prompt.token_ids(loaded)
    whole = tokenizer.encode("A fox ate 1234 figs.\n\nWhat is left? 5")
    if kind in AFTER:
        assert whole.pop() == tokenizer.eos_token_id
    assert context + question + answer == whole + [tokenizer.eos_token_id] * ends
    assert context and question and answer


def test_a_question_that_is_a_part_of_the_answers_first_token_is_read_with_the_end_of_the_context():
    tokenizer = of_kind("gpt2")
    prompt = Prompt("t", 0, "The grass is green.", " ", "The sky", ends=False)
    texts = [tokenizer.decode(part) for part in prompt.token_ids(LoadedModel("mine", None, tokenizer))]
    assert texts == ["The grass is green", ".", " The sky"]
