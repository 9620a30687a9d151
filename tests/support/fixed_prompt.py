"""A calibration prompt of given tokens."""

from tiny_models import random_tokens

from baklava.calibration.prompts import Prompt

SIZES = (30, 8, 4)  # context, question, answer


class FixedPrompt(Prompt):
    """A prompt whose tokens are given, so that no tokenizer is needed."""

    def token_ids(self, model):
        ids = random_tokens(sum(SIZES), seed=self.index)[0].tolist()
        return ids[: SIZES[0]], ids[SIZES[0] : -SIZES[2]], ids[-SIZES[2] :]
