"""The smallest experiment that runs every stage: a random model, one task, two ratios, a few samples."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from baklava.models import reference_model_path

NAME = "small"


def write_model(folder: Path, **changed: Any) -> Path:
    """Write a Llama with random weights and the tokenizer of a reference model."""
    reference = reference_model_path("tiny-llama")
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference / name, folder)
    config: dict[str, Any] = {
        "vocab_size": 4096,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**config, **changed})).save_pretrained(folder)
    return folder


def overrides(model: Path, *more: str) -> list[str]:
    """Hydra overrides of `experiment=smoke` that make the small experiment with the model in a folder."""
    return [
        "experiment=smoke",
        f"name={NAME}",
        f"models.tiny-llama.path={model}",
        "models.tiny-llama.dtype=float32",
        "task=[niah_single_1]",
        "+tasks.niah_single_1.max_new_tokens=4",
        "ratios=[0.5,0.8]",
        "calibration.length=400",
        "calibration.n_profile=1",
        "calibration.n_search=1",
        "search.n_rounds=1",
        "evaluate.n_samples=3",
        "evaluate.length=400",
        "evaluate.batch_rows=5",  # a sample at a time, so that a kill can fall between two
        "summary.n_bootstrap=100",
        *more,
    ]


def start_snakemake(repository: Path, folder: Path, settings: list[str], *options: str) -> subprocess.Popen[str]:
    """Start the workflow in a folder, as the leader of a process group of its own, with its output in a file."""
    experiment, *others = settings
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(repository / "Snakefile"), "--cores", "2"]
    command += [*options, "--config", experiment, f"overrides={' '.join(others)}"]
    with (folder / "snakemake.log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("MLFLOW_TRACKING_URI", None)  # runs go to the folder's own store
        return subprocess.Popen(
            command, cwd=folder, text=True, stdout=log, stderr=log, start_new_session=True, env=environment
        )
