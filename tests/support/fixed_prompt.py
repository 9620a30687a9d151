"""A calibration prompt of given tokens."""

from tiny_models import random_tokens

from baklava.calibration.prompts import Prompt

PARTS = (30, 8, 4)  # context, question, answer


class FixedPrompt(Prompt):
    """A prompt whose tokens are given, so that no tokenizer is needed."""

    def token_ids(self, model):
        ids = random_tokens(sum(PARTS), seed=self.index)[0].tolist()
        return ids[: PARTS[0]], ids[PARTS[0] : -PARTS[2]], ids[-PARTS[2] :]
