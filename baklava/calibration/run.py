"""The stage `calibrate`: makes calibration prompts from random streams that nothing else uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from baklava.calibration.look_back import find_context_dependent
from baklava.calibration.prompts import Calibration, Prompt
from baklava.errors import LengthError, UserError
from baklava.experiment.components import CalibrationConfig, ModelConfig, TextConfig
from baklava.experiment.jobs import CalibrateJob
from baklava.models.encoder import Encoder
from baklava.models.load import LoadedModel, load_model, load_tokenizer
from baklava.models.shape import read_shape
from baklava.system.progress import Progress
from baklava.tasks.base import random_stream
from baklava.tasks.text.documents import Documents, cut_pieces, open_documents, split_tokens

# Fraction of a text's continuation that is read before losses count, as the question of a task is.
LEAD_IN = 0.125

SPLIT = "calibration"


def draw_task_prompts(settings: CalibrationConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Prompt]:
    """Draw prompts from the tasks in turn, without end."""
    tasks = [task.build() for task in settings.tasks]
    count_tokens = Encoder(tokenizer).count
    index = 0
    while True:
        task = tasks[index % len(tasks)]
        try:
            sample = task.sample(
                split=SPLIT, seed=settings.seed, index=index, length=settings.length, count_tokens=count_tokens
            )
        except LengthError as error:
            raise UserError(f"calibration.length: {error}") from None
        question = sample.question + sample.answer_prefix
        if not question:  # nothing would predict the answer's first token but the context, which is compressed
            raise UserError(
                f"calibration.tasks: task {task.name} asks nothing after its context; choose another, or "
                "calibrate on its text with calibration=text calibration.text.data=FILE"
            )
        answer = task.reference_answer(sample)
        if not (sample.context and answer):
            lacking = "answer" if sample.context else "context"
            raise UserError(
                f"calibration.tasks: task {task.name}: its sample {index} has no {lacking}; leave such samples out, or "
                "choose another task"
            )
        context = sample.context
        if settings.protocol == "question_aware":
            context, question = context + sample.question, sample.answer_prefix
        yield Prompt(task.name, index, context, question, answer)
        index += 1


def _open_documents(text: TextConfig) -> Documents:
    return open_documents(text, who=f"text {text.name}", key="calibration.text.data")


def draw_text_prompts(
    text: TextConfig, settings: CalibrationConfig, tokenizer: PreTrainedTokenizerBase, loaded: LoadedModel
) -> Iterator[Prompt]:
    """Cut a text into prompts of at most `length` tokens that do not overlap, until the text ends."""
    encoder = Encoder(tokenizer)
    count_tokens = encoder.count

    def count_later_tokens(text: str) -> int:
        return len(encoder.encode_continuation(text))

    lead = max(1, round(LEAD_IN * text.continuation))
    sizes = (settings.length - text.continuation, lead, text.continuation - lead)
    rng = random_stream(split=SPLIT, name=text.name, seed=settings.seed, index=0)
    texts = cut_pieces(_open_documents(text), length=settings.length, count_tokens=count_tokens, rng=rng)
    for index, piece in enumerate(texts):
        context, question, answer = split_tokens(piece, sizes, (count_tokens, count_later_tokens, count_later_tokens))
        prompt = Prompt(text.name, index, context, question, answer, ends=False)
        context_ids, question_ids, answer_ids = prompt.token_ids(loaded)
        look_back = find_context_dependent(
            loaded,
            context_ids,
            question_ids + answer_ids,
            fraction=text.look_back,
            sinks=text.sinks,
            window=text.window,
        )
        yield replace(prompt, look_back=look_back)


def draw_prompts(
    settings: CalibrationConfig, n: int, tokenizer: PreTrainedTokenizerBase, loaded: LoadedModel | None
) -> Iterator[Prompt]:
    """Draw `n` prompts from the tasks, from a text, or from both in turn. Only a text needs the model (`loaded`).

    Raises `UserError` where the text is too short.
    """
    sources: list[Iterator[Prompt]] = []
    if settings.tasks:
        sources.append(draw_task_prompts(settings, tokenizer))
    if settings.text is not None:
        assert loaded is not None
        sources.append(draw_text_prompts(settings.text, settings, tokenizer, loaded))
    for i in Progress(range(n), desc=f"calibrate {settings.name}", unit="prompt"):
        prompt = next(sources[i % len(sources)], None)
        if prompt is None:
            assert settings.text is not None  # tasks never end
            raise UserError(
                f"text {settings.text.name}: {settings.text.data} has {i // len(sources)} pieces of {settings.length} "
                f"tokens, and {n} calibration prompts are asked for; give more text, or lower calibration.length, "
                "n_profile or n_search"
            )
        yield prompt


def calibrate(job: CalibrateJob) -> None:
    """Write the prompts to profile and the prompts that guide the search."""
    settings, loaded = job.calibration, None
    shape = read_shape(job.model)  # first, so that an unusable model is refused before any work
    if settings.text is not None:
        _open_documents(settings.text).read(0)  # fails for an unreadable text before a model is loaded
        loaded = load_model(job.model)
    tokenizer = load_tokenizer(job.model) if loaded is None else loaded.tokenizer
    prompts: list[Prompt] = []
    for prompt in draw_prompts(settings, settings.n_profile + settings.n_search, tokenizer, loaded):
        if not prompts:
            _check_vocabulary(job.model, prompt, shape.vocabulary)
        prompts.append(prompt)
    Calibration(tuple(prompts[: settings.n_profile]), tuple(prompts[settings.n_profile :])).save(job.prompts)


def _check_vocabulary(model: ModelConfig, prompt: Prompt, vocabulary: int) -> None:
    largest = max(load_tokenizer(model).encode(prompt.context + prompt.question + prompt.answer))
    if largest >= vocabulary:
        raise UserError(
            f"model {model.name}: its tokenizer gives token {largest}, and the model has {vocabulary} tokens; "
            f"put the tokenizer that belongs to it into {model.path}"
        )
