"""The stage `profile`: estimates the importance of every KV cache from one prefill per calibration prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import torch
from torch import Tensor
from tqdm import tqdm

from baklava.calibration.prompts import Calibration, Prompt
from baklava.experiment.jobs import ProfileJob
from baklava.experiment.settings import ProfileConfig
from baklava.importance.profile import Profile
from baklava.models.files import model_fingerprint
from baklava.models.load import LoadedModel, load_model
from baklava.profiling.recorder import Recorder


def profile_prompts(loaded: LoadedModel, prompts: Sequence[Prompt], settings: ProfileConfig) -> Profile:
    """One prefill per prompt. No `T x T` matrix is ever made, only `N x T` for `N` context-dependent positions."""
    recorder = Recorder(loaded, settings)
    heads: dict[str, list[Tensor]] = {name: [] for name in settings.estimators}
    layers = []
    with recorder.attached():
        for prompt in tqdm(prompts, desc=f"profile {loaded.name}", unit="prompt"):
            context, question, answer = prompt.token_ids(loaded)
            ids = torch.tensor([context + question + answer], device=loaded.device)
            positions = prompt.context_dependent_positions(len(context), len(question) + len(answer))
            recorder.record(ids, torch.tensor(positions, device=loaded.device))
            for name, values in recorder.heads.items():
                heads[name].append(values.to("cpu", copy=True))
            layers.append(recorder.layers.to("cpu", copy=True))
    return Profile(
        model=loaded.name,
        n_kv_heads=loaded.n_kv_heads,
        head_importance={name: torch.stack(values).numpy() for name, values in heads.items()},
        layer_importance=torch.stack(layers).numpy(),
    )


def profile(job: ProfileJob) -> None:
    """Profile a model on the calibration prompts and write the profile."""
    calibration = Calibration.load(job.prompts)
    loaded = load_model(job.model)
    measured = profile_prompts(loaded, calibration.profile, job.profile)
    meta = {
        "path": job.model.path,
        "revision": job.model.revision,
        "content": model_fingerprint(job.model),
        "dtype": job.model.dtype,
        "calibration": calibration.fingerprint,
        "settings": job.profile.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    replace(measured, meta=meta).save(job.output)
