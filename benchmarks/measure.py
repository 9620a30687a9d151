"""What the benchmarks share: side-by-side timing, the description of the machine, JSON and a table."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedConfig

from baklava.calibration.prompts import Prompt
from baklava.models.load import LoadedModel
from baklava.system.malloc import keep_freed_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse(parser: ArgumentParser) -> Namespace:
    """Arguments with the common ones added, and torch and the process set up as the commands do."""
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16" if cuda else "float32")
    parser.add_argument(
        "--repeats", type=int, default=15, help="timed rounds, in each of which every candidate runs once"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    keep_freed_memory()
    return arguments


def model_path(model: str) -> str:
    """The path of a model: itself where it is one, else that of the reference model of this name."""
    return model if ":" in model or "/" in model else f"reference:{model}"


def load_random(name: str, config: PreTrainedConfig, arguments: Namespace) -> LoadedModel:
    """A model with random weights and no tokenizer, ready for profiles and searches."""
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[arguments.dtype])
    model.eval().requires_grad_(False).set_attn_implementation("baklava")
    return LoadedModel(name, model, tokenizer=None)


class RandomPrompt(Prompt):
    """`index` seeds the tokens; context, question and answer say in digits how many there are of each."""

    def token_ids(self, model: LoadedModel) -> tuple[list[int], list[int], list[int]]:
        generator = torch.Generator().manual_seed(self.index)
        lengths = [int(part) for part in (self.context, self.question, self.answer)]
        ids = torch.randint(model.model.config.vocab_size, (sum(lengths),), generator=generator)
        context, question, answer = (part.tolist() for part in ids.split(lengths))
        return context, question, answer


def rounds(
    candidates: Mapping[Any, Callable[[], Any]],
    *,
    repeats: int,
    device: str,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, list[float]]:
    """Milliseconds, one number per round. Candidates take turns, so that whatever else the machine does hits all."""
    times: dict[Any, list[float]] = {name: [] for name in candidates}
    for round_ in range(repeats + warm_up):
        for name, candidate in candidates.items():
            started = clock()
            candidate()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if round_ >= warm_up:
                times[name].append(1e3 * (clock() - started))
    return times


def kernel_medians(
    candidates: Mapping[Any, Callable[[], Any]], *, repeats: int, replays: int = 10
) -> dict[Any, dict[str, float]]:
    """Median and spread in milliseconds of what a GPU computes, replayed as a CUDA graph: launches do not count."""
    graphs = {name: captured(candidate) for name, candidate in candidates.items()}
    times: dict[Any, list[float]] = {name: [] for name in candidates}
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for round_ in range(repeats + 2):
        for name, graph in graphs.items():
            started.record()
            for _ in range(replays):
                graph.replay()
            ended.record()
            torch.cuda.synchronize()
            if round_ >= 2:
                times[name].append(started.elapsed_time(ended) / replays)
    return spreads(times)


def captured(candidate: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """What a candidate launches. It has run before, so that all is compiled."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        candidate()
    return graph


def copy_bandwidth(device: str, n_bytes: int = 2**28) -> float:
    """Bytes per second, read and written, of a large copy: the limit of whatever reads memory."""
    cuda = device.startswith("cuda")
    source = torch.ones(4 * n_bytes if cuda else n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    [one] = rounds({"copy": lambda: target.copy_(source)}, repeats=7, device=device).values()
    return 2 * source.nbytes / (statistics.median(one) / 1e3)


def medians(candidates: Mapping[Any, Callable[[], Any]], *, repeats: int, device: str) -> dict[Any, dict[str, float]]:
    """Median and spread in milliseconds."""
    return spreads(rounds(candidates, repeats=repeats, device=device))


def spreads(times: Mapping[Any, Sequence[float]]) -> dict[Any, dict[str, float]]:
    """Median, least and greatest of some milliseconds each."""
    return {
        name: {"ms": statistics.median(some), "lowest": min(some), "highest": max(some)} for name, some in times.items()
    }


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device)
        if cuda
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "cuda": torch.version.cuda if cuda else None,
        "driver": driver() if cuda else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()


def report(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], figures: Mapping[str, Any], arguments: Namespace
) -> None:
    """Print a table, and write the figures as JSON where asked."""
    if arguments.json:
        content = {"machine": machine(arguments.device), "settings": vars(arguments), **figures}
        arguments.json.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")  # str of paths
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
