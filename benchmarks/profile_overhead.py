"""What a profile costs: `profile_prompts` with all estimators against plain prefills of the same prompts.

    python benchmarks/profile_overhead.py --json benchmarks/results/profile_overhead-cpu.json
    python benchmarks/profile_overhead.py --model llama-3-8b --lengths 8192 32768 131072   # on a GPU

The plain prefill keeps no cache and computes one row of logits, so nothing that a profile does not need counts for it.
`ratio` is the median, over rounds, of the two times of one round. `--each` also takes every estimator by itself.
"""

from __future__ import annotations

import statistics
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import measure
import torch
from decode_model import SHAPES
from transformers import LlamaConfig

from baklava.calibration.prompts import Prompt
from baklava.experiment.settings import ProfileConfig
from baklava.importance import ESTIMATORS
from baklava.models.load import LoadedModel
from baklava.profiling.run import profile_prompts

SMALLER = LlamaConfig(
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    vocab_size=4096,
    max_position_embeddings=262_144,
)
MODELS = {"smaller-llama": SMALLER, **SHAPES}


def prefilled(loaded: LoadedModel, prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        ids = torch.tensor([[token for part in prompt.token_ids(loaded) for token in part]], device=loaded.device)
        with torch.inference_mode():
            loaded.model(ids, use_cache=False, logits_to_keep=1)


def profiled(loaded: LoadedModel, prompts: Sequence[Prompt], settings: ProfileConfig) -> None:
    profile_prompts(loaded, prompts, settings)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smaller-llama")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--look-back", type=int, default=64, help="positions that must look back")
    parser.add_argument("--prompts", type=int, default=4, help="of one profile, for which the model is traced once")
    parser.add_argument("--each", action="store_true", help="every estimator by itself, too")
    arguments = measure.parse(parser)
    loaded = measure.load_random(arguments.model, MODELS[arguments.model], arguments)
    rows, figures = [], []
    for length in arguments.lengths:
        lengths = (str(length - arguments.look_back), "0", str(arguments.look_back))
        prompts = [measure.RandomPrompt("random", 0, *lengths)] * arguments.prompts
        candidates: dict[str, Callable[[], Any]] = {
            "prefill": partial(prefilled, loaded, prompts),
            "profile": partial(profiled, loaded, prompts, ProfileConfig()),
        }
        for name in ESTIMATORS if arguments.each else ():
            candidates[name] = partial(profiled, loaded, prompts, ProfileConfig(estimators=(name,)))
        times = measure.rounds(candidates, repeats=arguments.repeats, device=arguments.device)
        plain = times.pop("prefill")
        for name, some in times.items():
            ratios = [one / other for one, other in zip(some, plain, strict=True)]
            found = {
                "length": length,
                "estimators": "all" if name == "profile" else name,
                "prefill_ms": statistics.median(plain),
                "profile_ms": statistics.median(some),
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
            figures.append(found)
            rows.append(
                (
                    f"{length:,}",
                    found["estimators"],
                    *(f"{found[key]:.1f}" for key in ("prefill_ms", "profile_ms")),
                    *(f"{found[key]:.2f}" for key in ("ratio", "lowest", "highest")),
                )
            )
    title = f"Profile and plain prefill, {arguments.model}, {arguments.dtype}, {arguments.look_back} look back"
    columns = ("tokens", "estimators", "prefill ms", "profile ms", "ratio", "lowest", "highest")
    measure.report(title, columns, rows, {"figures": figures}, arguments)


if __name__ == "__main__":
    main()
