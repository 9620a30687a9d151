"""What budgets for all ratios cost once: growth on calibration prompts, in seconds and in prefills of these prompts.

    python benchmarks/search_time.py --json benchmarks/results/search_time-cpu.json
    python benchmarks/search_time.py --model llama-3-8b --prompts 24 --context 1024   # on a GPU

Weights and prompts are random: what a step of growth costs does not depend on them, how many rounds of refinement pay
does, so that all of them are run. Prefilled contexts stay in memory as far as there is room.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import measure
import torch
from profile_overhead import MODELS

from baklava.eviction import NAMES, POLICIES
from baklava.inference.batch import prefill
from baklava.inference.continuation_loss import ContinuationLosses
from baklava.search.growth import Growth
from baklava.system.progress import Progress


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smaller-llama")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--continuation", type=int, nargs=2, default=[24, 24], help="tokens of question and of answer")
    parser.add_argument("--eviction", choices=NAMES, default="streaming_llm")
    parser.add_argument("--lowest-ratio", type=float, default=0.5, help="the ladder is climbed up to this one")
    parser.add_argument("--rounds", type=int, default=2, help="of refinement")
    arguments = measure.parse(parser)
    config = MODELS[arguments.model]
    loaded = measure.load_random(arguments.model, config, arguments)
    policy = POLICIES[arguments.eviction]()
    parts = (str(arguments.context), *map(str, arguments.continuation))
    prompts = [measure.RandomPrompt("random", index, *parts) for index in range(arguments.prompts)]

    seconds = []
    for prompt in prompts[:1] + prompts:  # the first once more: what is set up once does not count
        started = time.perf_counter()
        prefill(loaded, [prompt.token_ids(loaded)[0]], [policy])
        if arguments.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    plain = sum(seconds[1:])

    source = ContinuationLosses(loaded, policy, batch_rows=8, objective="divergence")
    shape = (config.num_hidden_layers, config.num_key_value_heads)
    started = time.perf_counter()
    with Progress(desc="grow", unit="prompt") as progress:
        growth = Growth(source, prompts, shape, progress)
        growth.climb(1.0 - arguments.lowest_ratio, refine=arguments.rounds)
    took = time.perf_counter() - started
    figures = {
        "kv_caches": shape[0] * shape[1],
        "prefill_seconds": plain,
        "growth_seconds": took,
        "prefills": took / plain,
        "rungs": len(growth.rungs),
    }
    row = (f"{shape[0]} x {shape[1]}", f"{plain:.2f}", f"{took:.1f}", f"{took / plain:.1f}", str(len(growth.rungs)))
    title = f"Growth, {arguments.model}, {arguments.prompts} prompts of {arguments.context:,} tokens, {arguments.dtype}"
    measure.report(title, ("KV caches", "prefill s", "growth s", "in prefills", "rungs"), [row], figures, arguments)


if __name__ == "__main__":
    main()
