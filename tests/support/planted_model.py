"""A small Llama with hand-set weights, so that the KV caches that retrieve are known.

Two KV heads do what induction heads do: a query looks for the entry that came right after an earlier occurrence of its
own token, and predicts that entry's token. They find it through a previous-token head of the first layer, which writes
into every position what came before it. The other heads look at fixed offsets, or everywhere.
"""

from __future__ import annotations

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from baklava.calibration.prompts import Prompt
from baklava.models.load import LoadedModel

N_LAYERS, N_HEADS, N_KV_HEADS, HEAD_DIM = 3, 4, 2, 64
GROUP = N_HEADS // N_KV_HEADS

# (layer, KV head) of each kind.
RETRIEVAL = {(1, 1), (2, 0)}
LOCAL = {(0, 0): 1, (0, 1): 0, (2, 1): 2}  # how many tokens back they look
PREVIOUS_TOKEN = (0, 0)
EVERYWHERE = {(1, 0)}

# The residual stream: the token, the one before it, the prediction (all one-hot), and a constant.
VOCABULARY = 20
TOKEN, BEFORE, PREDICTED, CONSTANT, HIDDEN = 0, 20, 40, 60, 64
BEGIN, NOISE, NAMES = 0, range(1, 10), range(10, VOCABULARY)

# The first pairs of a head's dimensions rotate with the position, the last hardly at all over a few hundred tokens.
THETA = 1e12
POSITIONAL, CONTENT = range(8), 12


def planted_model() -> LoadedModel:
    """Weights in float32; the attention is `baklava`."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_KV_HEADS,
        head_dim=HEAD_DIM,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        tokens = torch.arange(VOCABULARY)
        model.model.embed_tokens.weight[tokens, TOKEN + tokens] = 1.0
        model.model.embed_tokens.weight[:, CONSTANT] = 1.0
        model.lm_head.weight[tokens, PREDICTED + tokens] = 5.0
        for (layer, kv_head), offset in LOCAL.items():
            attention = model.model.layers[layer].self_attn
            _look_back_by(attention, kv_head, offset)
            planted = (layer, kv_head) == PREVIOUS_TOKEN
            _copy_tokens(attention, kv_head, into=BEFORE if planted else TOKEN, strength=0.2 if planted else 0.02)
        for layer, kv_head in RETRIEVAL:
            attention = model.model.layers[layer].self_attn
            _look_for_own_token(attention, kv_head)
            _copy_tokens(attention, kv_head, into=PREDICTED, strength=0.1)
        for layer, kv_head in EVERYWHERE:  # without queries all entries are alike
            _copy_tokens(model.model.layers[layer].self_attn, kv_head, into=TOKEN, strength=0.02)
    model.set_attn_implementation("baklava")
    return LoadedModel("planted", model, tokenizer=None)  # type: ignore[arg-type]


def _query_rows(kv_head: int) -> list[int]:
    """First row of each query head that shares a KV head."""
    return [(kv_head * GROUP + i) * HEAD_DIM for i in range(GROUP)]


def _look_back_by(attention: torch.nn.Module, kv_head: int, offset: int) -> None:
    """Scores that are largest for the entry `offset` tokens back: each frequency's wave has its crest there."""
    gain = 5.0
    for i in POSITIONAL:
        angle = torch.tensor(offset * THETA ** (-2 * i / HEAD_DIM))
        for row in _query_rows(kv_head):
            attention.q_proj.weight[row + i, CONSTANT] = gain
        attention.k_proj.weight[kv_head * HEAD_DIM + i, CONSTANT] = gain * angle.cos()
        attention.k_proj.weight[kv_head * HEAD_DIM + HEAD_DIM // 2 + i, CONSTANT] = gain * angle.sin()


def _look_for_own_token(attention: torch.nn.Module, kv_head: int) -> None:
    """Scores that are large for entries whose token before them is the query's own."""
    gain = 4.0
    for token in range(VOCABULARY):
        for row in _query_rows(kv_head):
            attention.q_proj.weight[row + CONTENT + token, TOKEN + token] = gain
        attention.k_proj.weight[kv_head * HEAD_DIM + CONTENT + token, BEFORE + token] = gain


def _copy_tokens(attention: torch.nn.Module, kv_head: int, *, into: int, strength: float) -> None:
    """Values are the entries' tokens, written into a part of the residual stream."""
    for token in range(VOCABULARY):
        attention.v_proj.weight[kv_head * HEAD_DIM + token, TOKEN + token] = 1.0
        for row in _query_rows(kv_head):
            attention.o_proj.weight[into + token, row + token] = strength / GROUP


class PlantedPrompt(Prompt):
    """Names with a value each, early in noise; the question is the first name, the answer its value."""

    n_context = 80

    def token_ids(self, model: LoadedModel) -> tuple[list[int], list[int], list[int]]:
        rng = random.Random(self.index)
        context = [BEGIN, *rng.choices(NOISE, k=self.n_context - 1)]
        names = rng.sample(NAMES, 6)
        for pair, position in enumerate((12, 20, 28)):
            context[position : position + 2] = names[2 * pair : 2 * pair + 2]
        return context, names[:1], names[1:2]


def planted_prompts(n: int) -> list[Prompt]:
    return [PlantedPrompt("planted", index, "", "", "") for index in range(n)]
