"""Importance estimators: how much a KV cache matters. One file per estimator.

The table holds module names, so that a configuration can be checked without importing torch.
"""

ESTIMATORS: dict[str, str] = {
    "value_output_cosine": "baklava.importance.value_output_cosine",
    "eviction_shift_cosine": "baklava.importance.eviction_shift_cosine",
    "eviction_shift": "baklava.importance.eviction_shift",
    "long_range_mass": "baklava.importance.long_range_mass",
    "layer_cosine": "baklava.importance.layer_cosine",
    "random": "baklava.importance.random",
}

# The scores of a file (profile.scores), taken only where they are asked for.
FROM_FILE = "file"
# Reads each context a second time, so it is taken only where it is asked for.
RECONSTRUCTION = "reconstruction"
MODULES = {
    **ESTIMATORS,
    FROM_FILE: "baklava.importance.file",
    RECONSTRUCTION: "baklava.importance.reconstruction",
}

# Controls know nothing of the model: they are for comparison and never chosen.
CONTROLS = ("random",)

__all__ = ["CONTROLS", "ESTIMATORS", "FROM_FILE", "MODULES", "RECONSTRUCTION"]
