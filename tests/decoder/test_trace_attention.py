"""What attention adds to the residual stream, in families of decoders that add it in different ways.

The stream is watched in the model itself, where it enters a layer and where the layer's second half takes it up; no
reference knows how the package finds its way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import pytest
import torch
from fixed_prompt import FixedPrompt
from quantised_linears import KINDS
from tiny_models import random_tokens
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from baklava.decoder.trace_attention import trace_attention_paths
from baklava.errors import UserError
from baklava.experiment.settings import ProfileConfig
from baklava.importance.simulated_eviction import simulate_eviction
from baklava.models.load import LoadedModel
from baklava.profiling.recorder import Recorder
from baklava.profiling.run import profile_prompts

SETTINGS = ProfileConfig(skip_first=3, sinks=2, window=0.2)
N_LAYERS, N_HEADS, DIM, LENGTH, FIRST = 2, 4, 8, 42, 30  # tokens of `FixedPrompt`, and the first that looks back
FULL = {"layer_types": ["full_attention"] * N_LAYERS}


@dataclass(frozen=True)
class Family:
    """Where in a layer the output projection is, and what takes up the stream with the attention added to it.

    In a parallel block nothing does; there the attention's own output is what is added.
    """

    config: str
    projection: str = "self_attn.o_proj"
    takes_up: str | None = "post_attention_layernorm"
    attention: str = "self_attn"
    layers: str = "model.layers"
    more: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "llama": Family("llama"),
    "qwen2": Family("qwen2"),
    "granite": Family("granite", more={"residual_multiplier": 0.3}),
    "gemma2": Family("gemma2", takes_up="pre_feedforward_layernorm", more={**FULL, "attn_logit_softcapping": 2.0}),
    "gemma3": Family("gemma3_text", takes_up="pre_feedforward_layernorm", more=FULL),
    "olmo2": Family("olmo2", takes_up="mlp"),
    "olmo3": Family("olmo3", takes_up="mlp", more=FULL),
    "exaone4": Family("exaone4", takes_up="mlp", more=FULL),
    "glm": Family("glm"),
    "glm4": Family("glm4"),
    "afmoe": Family("afmoe", takes_up="pre_mlp_layernorm", more={**FULL, "num_dense_layers": 2}),  # gates, too
    "gpt_neox": Family(
        "gpt_neox", "attention.dense", None, "attention", "gpt_neox.layers", {"use_parallel_residual": True}
    ),
    "gpt_neox_in_turn": Family(
        "gpt_neox",
        "attention.dense",
        "post_attention_layernorm",
        "attention",
        "gpt_neox.layers",
        {"use_parallel_residual": False},
    ),
    "cohere": Family("cohere", takes_up=None),
    "phi": Family("phi", "self_attn.dense", None),
    "opt": Family(
        "opt", "self_attn.out_proj", "final_layer_norm", layers="model.decoder.layers", more={"word_embed_proj_dim": 32}
    ),
    "gpt2": Family("gpt2", "attn.c_proj", "ln_2", "attn", "transformer.h"),
}


def family_model(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Random, with norms and biases as training leaves them: away from 1 and 0."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[FAMILIES[name].config](
        vocab_size=60,
        hidden_size=N_HEADS * DIM,
        intermediate_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=2 if name not in ("opt", "gpt2") and "neox" not in name else N_HEADS,
        head_dim=DIM,
        max_position_embeddings=64,
        initializer_range=0.3,
        **{f"{kind}_token_id": None for kind in ("pad", "bos", "eos")},
        **FAMILIES[name].more,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="baklava").to(dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, dtype=dtype)
    return model


def loaded(model: PreTrainedModel) -> LoadedModel:
    return LoadedModel("m", model, tokenizer=None)  # type: ignore[arg-type]


def profiled(model: PreTrainedModel) -> Any:
    return profile_prompts(loaded(model), [FixedPrompt("none", 0, "", "", "")], SETTINGS)


@dataclass
class Seen:
    """Of one layer: the stream that entered `[T, hidden]`, that which left its attention, the heads' outputs."""

    entered: Tensor | None = None
    left: Tensor | None = None


@contextmanager
def watched(model: PreTrainedModel, family: Family) -> Iterator[list[Seen]]:
    layers = attrgetter(family.layers)(model)
    seen = [Seen() for _ in layers]

    def first(args: Any, kwargs: Any) -> Tensor:
        return (args[0] if args else kwargs["hidden_states"]).reshape(LENGTH, -1)

    hooks = []
    for one, layer in zip(seen, layers, strict=True):

        def enters(module: nn.Module, args: Any, kwargs: Any, one: Seen = one) -> None:
            one.entered = first(args, kwargs)

        def taken_up(module: nn.Module, args: Any, kwargs: Any, one: Seen = one) -> None:
            one.left = first(args, kwargs)

        def attended(module: nn.Module, args: Any, kwargs: Any, output: Any, one: Seen = one) -> None:
            assert one.entered is not None
            one.left = one.entered + output[0].reshape(LENGTH, -1)

        hooks.append(layer.register_forward_pre_hook(enters, with_kwargs=True))
        if family.takes_up is None:
            module = attrgetter(family.attention)(layer)
            hooks.append(module.register_forward_hook(attended, with_kwargs=True))
        else:
            module = attrgetter(family.takes_up)(layer)
            hooks.append(module.register_forward_pre_hook(taken_up, with_kwargs=True))
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_importance_is_how_much_attention_turns_the_stream(name: str) -> None:
    model, family = family_model(name), FAMILIES[name]
    with watched(model, family) as seen, torch.inference_mode():
        model(random_tokens(LENGTH), use_cache=False)
    expected = [
        1 - torch.cosine_similarity(one.entered[3:], one.left[3:], dim=-1).mean()
        for one in seen
        if one.entered is not None and one.left is not None
    ]
    found = profiled(model)
    torch.testing.assert_close(
        torch.from_numpy(found.layer_importance[0]).double(), torch.stack(expected), rtol=1e-4, atol=1e-6
    )
    layer_cosine = torch.from_numpy(found.head_importance["layer_cosine"][0])  # [L, Hq]
    assert (layer_cosine == layer_cosine[:, :1]).all()
    torch.testing.assert_close(layer_cosine[:, 0].double(), torch.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_eviction_shift_is_how_far_the_stream_moves_when_one_head_loses_its_entries(name: str) -> None:
    """One head's outputs at the positions that look back are exchanged in the model, and the stream is watched."""
    model, family = family_model(name), FAMILIES[name]
    found = torch.from_numpy(profiled(model).head_importance["eviction_shift"][0]).double()
    tokens, shown = random_tokens(LENGTH), {}
    with watched(model, family) as seen, torch.inference_mode():

        def observer(module: nn.Module, *tensors: Tensor, scaling: float, softcap: float | None) -> None:
            shown[len(shown)] = (*(one[0] for one in tensors), scaling, softcap)

        model(tokens, use_cache=False, observer=observer)
        before = [one.left for one in seen]
        for index in range(N_LAYERS):
            query, key, value, output, scaling, softcap = shown[index]
            look = torch.arange(FIRST, LENGTH)
            evicted, _ = simulate_eviction(
                query[:, look],
                key,
                value,
                look,
                sinks=SETTINGS.sinks,
                window=int(SETTINGS.window * LENGTH),
                scaling=scaling,
                softcap=softcap,
            )
            for head in range(N_HEADS):
                place = slice(head * DIM, (head + 1) * DIM)

                def exchange(module: nn.Module, args: Any) -> tuple[Tensor]:
                    changed = args[0].clone().view(LENGTH, -1)
                    gate = changed[FIRST:, place] / output[head, FIRST:]  # noqa: B023
                    changed[FIRST:, place] = gate * evicted[head]  # noqa: B023
                    return (changed.view(args[0].shape),)

                projection = attrgetter(family.projection)(attrgetter(family.layers)(model)[index])
                hook = projection.register_forward_pre_hook(exchange)
                model(tokens, use_cache=False)
                hook.remove()
                moved = (seen[index].left - before[index])[FIRST:].norm(dim=-1).mean()
                torch.testing.assert_close(found[index, head], moved.double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["qwen2", "gemma3", "phi"])
def test_a_quantised_model_has_the_importance_of_its_dequantised_twin(name: str, kind: type) -> None:
    family = FAMILIES[name]
    quantised, plain = family_model(name, torch.float32), family_model(name, torch.float32)
    place, _, last = family.projection.rpartition(".")
    layers = zip(attrgetter(family.layers)(quantised), attrgetter(family.layers)(plain), strict=True)
    for one, other in layers:
        module = kind(attrgetter(family.projection)(one))
        setattr(attrgetter(place)(one), last, module)
        attrgetter(family.projection)(other).weight.data = module.dequantised().float().contiguous()
    found, expected = profiled(quantised), profiled(plain)
    rounding = 0.05 if kind.__name__ == "QuantisedInputs" else 1e-3  # its activations are rounded in the pass, too
    for estimator, values in expected.head_importance.items():
        torch.testing.assert_close(
            torch.from_numpy(found.head_importance[estimator]),
            torch.from_numpy(values),
            rtol=rounding,
            atol=rounding / 10,
            msg=lambda text, estimator=estimator: f"{estimator}: {text}",
        )


def test_a_path_that_cannot_be_said_is_refused_by_name() -> None:
    model = family_model("llama")
    model.model.layers[1].self_attn.o_proj = nn.Sequential(model.model.layers[1].self_attn.o_proj, nn.Tanh())
    with pytest.raises(UserError, match=r"layer 1: the output of LlamaAttention reaches .* through Sequential"):
        Recorder(loaded(model), SETTINGS)


class MixesPositions(nn.Module):
    """A short causal convolution: what it makes of a position depends on the one before."""

    def forward(self, values: Tensor) -> Tensor:
        return values + nn.functional.pad(values, (0, 0, 1, 0))[:, :-1]


def test_a_step_that_mixes_positions_is_refused() -> None:
    model = family_model("gemma2")
    model.model.layers[0].post_attention_layernorm = MixesPositions()
    with pytest.raises(UserError, match=r"layer 0: .* through MixesPositions"):
        Recorder(loaded(model), SETTINGS)


@pytest.mark.parametrize("scale", [0.5, torch.linspace(0.1, 2.0, N_HEADS * DIM)])
def test_a_stream_that_is_scaled_where_attention_is_added_is_refused(scale: float | Tensor) -> None:
    model = family_model("llama")
    layer = model.model.layers[1]

    def scaled(hidden_states: Tensor, **given: Any) -> Tensor:
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **given)
        hidden_states = hidden_states * scale + attended
        return hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))

    layer.forward = scaled
    with pytest.raises(UserError, match=r"layer 1: .* a stream that is scaled first"):
        Recorder(loaded(model), SETTINGS)


def test_attention_that_is_called_twice_is_refused() -> None:
    model = family_model("llama")
    layer = model.model.layers[1]
    once = layer.forward
    layer.forward = lambda hidden_states, **given: once(once(hidden_states, **given), **given)
    with pytest.raises(UserError, match=r"layer 1: .* one of several calls of the attention"):
        Recorder(loaded(model), SETTINGS)


def test_a_model_that_does_not_use_the_attention_is_refused() -> None:
    model = family_model("llama")
    model.set_attn_implementation("sdpa")
    with pytest.raises(UserError, match="layer 0 does not show its attention"):
        Recorder(loaded(model), SETTINGS)


@pytest.mark.parametrize("name", FAMILIES)
def test_following_leaves_nothing_behind(name: str) -> None:
    model = family_model(name)
    before = model(random_tokens(LENGTH), use_cache=False).logits
    trace_attention_paths(model, range(N_LAYERS))
    assert not [hook for one in model.modules() for hook in (*one._forward_hooks, *one._forward_pre_hooks)]
    assert torch.equal(model(random_tokens(LENGTH), use_cache=False).logits, before)
