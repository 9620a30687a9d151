"""The evaluation engine: one prefill per sample, all cells decoded from it as rows of ragged batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from baklava.errors import UserError
from baklava.evaluation.prompt import Prompts
from baklava.evaluation.record_schema import Record
from baklava.evaluation.samples import CellSpec, EncodedSample
from baklava.evaluation.scheduler import Scheduler
from baklava.experiment.settings import EvaluateConfig
from baklava.models.encoder import Tokens
from baklava.models.load import LoadedModel
from baklava.tasks import Sample, Task


class Engine:
    """Answers samples in cells, many rows at a time.

    Answers do not depend on what is computed together, up to the order of floating-point sums: in another batch two
    tokens that are equally likely to the last bits may swap.
    """

    def __init__(self, loaded: LoadedModel, task: Task, settings: EvaluateConfig):
        self.loaded = loaded
        self.task = task
        self.settings = settings
        self._prompts = Prompts(loaded.name, loaded.tokenizer, task, settings, loaded.template_kwargs)
        if settings.length > loaded.n_positions:
            raise UserError(
                f"evaluate.length: {settings.length} tokens, but model {loaded.name} has {loaded.n_positions} "
                "positions; ask for at most so many"
            )

    def encode(
        self, sample: Sample, cells: Sequence[CellSpec], tokens: Tokens | None = None, *, turn: int = 1
    ) -> EncodedSample:
        """The sample in tokens (`tokens` where they are known already), split as the protocol says.

        Raises `UserError` if the sample takes more positions than the model has, or if its context, or the answer whose
        loss is its score, is empty.
        """
        context, question, answer, steps = tokens or self._prompts.tokens(sample)
        if not context:
            raise UserError(f"task {self.task.name}: sample {sample.index} has no context to compress; leave it out")
        if self.task.by_loss and not answer:
            raise UserError(f"task {self.task.name}: sample {sample.index} has no tokens to score; leave it out")
        needed = len(context) + len(question) + max(len(answer), sample.max_new_tokens)
        if needed > self.loaded.n_positions:
            raise UserError(
                f"task {self.task.name}: sample {sample.index} takes {needed} tokens, but model {self.loaded.name} "
                f"has {self.loaded.n_positions} positions; lower evaluate.length"
            )
        encoded = EncodedSample(sample, context, question, cells, answer, steps, turn)
        # The last generated token is never read.
        n_generated = 0 if self.task.by_loss else sample.max_new_tokens - 1
        length = len(context) + encoded.n_after_context + n_generated
        return replace(encoded, rotated_for=self.loaded.rotated_for(length))

    def answer(
        self, samples: Iterable[EncodedSample], max_rows: int | None = None, chunk: int | None = None
    ) -> Iterator[list[Record]]:
        """Records of all samples in all their cells, as they finish, from at most `max_rows` rows at a time.

        Contexts are read in one pass, or in chunks of `chunk` tokens. Both default to the settings. If memory runs out,
        what was in progress begins anew with half as many rows, and a sample that cannot be prefilled alone begins anew
        with half as long chunks. A sample that cannot be prefilled even so, or a row that cannot be decoded alone, has
        failed.
        """
        scheduler = Scheduler(
            self.loaded,
            self.task,
            self.settings,
            samples,
            max_rows=max_rows or self.settings.batch_rows,
            chunk=chunk or self.settings.prefill_chunk,
        )
        while True:
            try:
                records, out_of_memory = scheduler.advance(), False
            except torch.OutOfMemoryError:
                records, out_of_memory = [], True  # recovered from below: the exception holds on to tensors
            if records is None:
                return
            if out_of_memory:
                records, again = scheduler.give_up()
                n_rows = sum(len(encoded.cells) for encoded in again)
                yield from self.answer(again, max(1, min(scheduler.max_rows, n_rows) // 2), scheduler.chunk)
            if records:
                yield records
