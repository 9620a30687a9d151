"""Importance estimators: how much a KV cache matters. One file per estimator.

The table holds module names, so that a configuration can be checked without importing torch.
"""

ESTIMATORS: dict[str, str] = {
    "value_output_cosine": "baklava.importance.value_output_cosine",
    "eviction_shift_cosine": "baklava.importance.eviction_shift_cosine",
    "eviction_shift": "baklava.importance.eviction_shift",
}

__all__ = ["ESTIMATORS"]
