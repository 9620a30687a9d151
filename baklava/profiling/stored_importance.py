"""A store of measured importance, so that an added estimator or prompt measures nothing else again."""

from __future__ import annotations

import base64
import inspect
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from baklava.calibration.prompts import Prompt
from baklava.experiment.components import ModelConfig
from baklava.experiment.settings import ProfileConfig
from baklava.importance import FROM_FILE, MODULES
from baklava.models.files import model_identity
from baklava.system.append_log import AppendLog
from baklava.system.fingerprint import fingerprint, fingerprint_file

# Part of the fingerprint of stored importance: raise it with a change after which it may be another.
VERSION = 1
LAYER = "layer"  # the name of the layers' importance, beside those of the estimators


class ImportanceStore:
    """Importance per prompt and estimator in a log, under a fingerprint of all that determines it."""

    def __init__(self, log: AppendLog, model: ModelConfig, settings: ProfileConfig):
        self._log = log
        self._names = (*settings.estimators, LAYER)
        shared = [VERSION, model_identity(model), settings.model_dump(mode="json", exclude={"estimators", "scores"})]
        self._fingerprints = {name: fingerprint(*shared, name, *_source(name, settings)) for name in self._names}

    def missing(self, prompt: Prompt) -> tuple[str, ...]:
        """Names whose importance has not been measured on a prompt."""
        return tuple(name for name in self._names if self._key(prompt, name) not in self._log)

    def add(self, prompt: Prompt, importance: Mapping[str, NDArray[np.float32]]) -> None:
        """Store importance `[L, Hq]`, and `[L]` of the layers."""
        self._log.add(
            {
                self._key(prompt, name): {
                    "shape": values.shape,
                    "data": base64.b64encode(values.astype("<f4").tobytes()).decode(),
                }
                for name, values in importance.items()
            }
        )

    def load(self, prompt: Prompt, name: str) -> NDArray[np.float32]:
        """The same, as it was measured."""
        entry = self._log[self._key(prompt, name)]
        return np.frombuffer(base64.b64decode(entry["data"]), "<f4").astype(np.float32).reshape(entry["shape"])

    def _key(self, prompt: Prompt, name: str) -> str:
        return fingerprint(self._fingerprints[name], asdict(prompt))


def _source(name: str, settings: ProfileConfig) -> tuple[str, ...]:
    """The code of an estimator, which its author may change between two runs, and the file that it reads."""
    files = (fingerprint_file(settings.scores),) if name == FROM_FILE and settings.scores is not None else ()
    return ("" if name == LAYER else inspect.getsource(import_module(MODULES[name])), *files)
