"""Budgets for servers whose layers have windows: TensorRT-LLM and vLLM."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from baklava.allocation.formats.base import Expressed, Format, Options
from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.system.files import write_plain_json

SINKS = 4


class TrtllmWindows(Format):
    """`KvCacheConfig(max_attention_window=[...], sink_token_length=...)`: one window per layer.

    Written: each layer gets the mean of its KV heads, in tokens of the context; the sum over layers is exact (largest
    remainder). The sinks are part of a window.
    """

    name = "trtllm-windows"
    writes = frozenset({"context", "sinks"})

    def write(self, budgets: Budgets, output: Path, options: Options) -> Expressed:
        context = self.needs(options, "context", output, "windows are tokens, of a context of unknown length")
        sinks = SINKS if options.sinks is None else options.sinks
        layers = Budgets.from_shares(budgets.shares.mean(1, keepdims=True), ratio=budgets.ratio)
        windows = layers.entries(context)[:, 0]
        if windows.min() <= sinks:
            raise UserError(
                f"{output}: trtllm-windows: layer {int(windows.argmin())} keeps {windows.min()} of {context} tokens, "
                f"no more than the {sinks} sinks; lower sinks or raise context"
            )
        write_plain_json(output, {"max_attention_window": windows.tolist(), "sink_token_length": sinks})
        return Expressed(
            np.repeat(windows[:, None] / context, budgets.shape[1], axis=1),
            f"each layer's window is the mean of its KV heads, in a context of {context} tokens; {sinks} are sinks",
            "differences between the KV heads of a layer, and which entries stay: the first and the last",
        )


class VllmLayerTypes(Format):
    """`--hf-overrides`: layers with full attention and layers with one sliding window, without sinks.

    Written: the layers with the largest mean shares are full. Of all numbers of full layers, each with the largest
    window that the total then allows, the one whose layers differ least from the budgets is taken; with `window`, that
    window and as many full layers as the total allows.
    """

    name = "vllm-layer-types"
    writes = frozenset({"context", "window"})

    def write(self, budgets: Budgets, output: Path, options: Options) -> Expressed:
        context = self.needs(options, "context", output, "a window is tokens, of a context of unknown length")
        layers = budgets.shares.mean(1)
        rank = np.argsort(np.argsort(-layers, kind="stable"), kind="stable")
        total = layers.sum() * context + 1e-6
        choices = []
        for n_full in range(len(layers) + 1):
            n_windowed = len(layers) - n_full
            largest = int((total - n_full * context) // n_windowed) if n_windowed else context
            window = min(largest, context) if options.window is None else options.window
            if window < 1 or n_full * context + n_windowed * window > total:
                continue
            shares = np.where(rank < n_full, 1.0, window / context)
            choices.append((float(np.abs(shares - layers).sum()), n_full, window, shares))
        if not choices:
            raise UserError(
                f"{output}: vllm-layer-types: the budgets keep {layers.mean() * context:.0f} of {context} tokens per "
                "layer, less than the window; lower window or raise context"
            )
        if options.window is not None:
            choices = choices[-1:]
        _, n_full, window, shares = min(choices, key=lambda choice: choice[:2])
        kinds = ["full_attention" if full else "sliding_attention" for full in rank < n_full]
        write_plain_json(output, {"layer_types": kinds, "sliding_window": window})
        return Expressed(
            np.repeat(shares[:, None], budgets.shape[1], axis=1),
            f"the {n_full} layers with the largest shares are full, the others have a window of {window} tokens, of a "
            f"context of {context}",
            "sinks, differences between the KV heads of a layer, and between layers of one kind",
        )
