"""The stage `profile`: estimates the importance of every KV cache from one prefill per calibration prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from baklava.calibration.prompts import Calibration, Prompt
from baklava.experiment.jobs import ProfileJob
from baklava.experiment.settings import ProfileConfig
from baklava.importance import RECONSTRUCTION
from baklava.importance.profile import Profile
from baklava.models.files import model_fingerprint
from baklava.models.load import LoadedModel, load_model
from baklava.profiling.reconstruction import measure_reconstruction
from baklava.profiling.recorder import Recorder
from baklava.profiling.stored_importance import LAYER, ImportanceStore
from baklava.system.append_log import AppendLog
from baklava.system.progress import Progress


def measure_importance(
    loaded: LoadedModel, prompts: Sequence[Prompt], settings: ProfileConfig
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Importance on one prompt after another, `[L, Hq]` per estimator, and `[L]` of the layers (`LAYER`).

    One prefill per prompt, and for `reconstruction` another with a repetition. No `T x T` matrix is ever made, only
    `N x T` for `N` context-dependent positions.
    """
    recorder = Recorder(loaded, settings)
    for prompt in Progress(prompts, desc=f"profile {loaded.name}", unit="prompt"):
        context, question, answer = prompt.token_ids(loaded)
        ids = torch.tensor([context + question + answer], device=loaded.device)
        positions = prompt.context_dependent_positions(len(context), len(question) + len(answer))
        reconstruction = measure_reconstruction(loaded, context) if RECONSTRUCTION in settings.estimators else None
        with recorder.attached():
            recorder.record(ids, torch.tensor(positions, device=loaded.device), reconstruction)
        measured = {**recorder.heads, LAYER: recorder.layers}
        yield {name: values.to("cpu", copy=True).numpy() for name, values in measured.items()}


def profile_prompts(loaded: LoadedModel, prompts: Sequence[Prompt], settings: ProfileConfig) -> Profile:
    """The profile of a model on some prompts, all measured now."""
    return _profile_of(loaded, list(measure_importance(loaded, prompts, settings)), settings)


def _profile_of(
    loaded: LoadedModel, measured: Sequence[Mapping[str, NDArray[np.float32]]], settings: ProfileConfig
) -> Profile:
    return Profile(
        model=loaded.name,
        n_kv_heads=loaded.n_kv_heads,
        head_importance={name: np.stack([values[name] for values in measured]) for name in settings.estimators},
        layer_importance=np.stack([values[LAYER] for values in measured]),
    )


def profile(job: ProfileJob) -> None:
    """Profile a model on the calibration prompts and write the profile.

    What was measured earlier, by a killed job or for another choice of estimators or prompts, is not measured again.
    """
    calibration, settings = Calibration.load(job.prompts), job.profile
    loaded = load_model(job.model)
    with closing(AppendLog(job.output.with_suffix(".importance"), alone=True)) as log:
        store = ImportanceStore(log, job.model, settings)
        missing: dict[tuple[str, ...], list[Prompt]] = defaultdict(list)
        for prompt in calibration.profile:
            missing[store.missing(prompt)].append(prompt)
        for names, group in missing.items():
            if names:
                estimators = tuple(name for name in names if name != LAYER)
                measured = measure_importance(loaded, group, settings.model_copy(update={"estimators": estimators}))
                for prompt, importance in zip(group, measured, strict=True):
                    store.add(prompt, {name: importance[name] for name in names})
        names = (*settings.estimators, LAYER)
        stored = [{name: store.load(prompt, name) for name in names} for prompt in calibration.profile]
    meta = {
        "path": job.model.path,
        "revision": job.model.revision,
        "content": model_fingerprint(job.model),
        **job.model.arithmetic,
        "calibration": calibration.fingerprint,
        "settings": job.profile.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    replace(_profile_of(loaded, stored, settings), meta=meta).save(job.output)
