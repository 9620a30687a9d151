"""TANGRAM's profiles and cluster maps of page groups (arXiv 2606.06302)."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baklava.allocation.formats.base import MAX_TOKENS, Expressed, Format, Options
from baklava.allocation.water_filling import water_fill
from baklava.budgets import Budgets
from baklava.errors import UserError
from baklava.system.files import atomic
from baklava.system.foreign_files import checked_numbers, read_archive

PAGE_GROUP = 4


class Tangram(Format):
    """A profile holds the share that each KV cache keeps beyond sinks and a window; a cluster map groups the caches.

    Read: of a profile, every cache keeps its sinks and window, and the rest of the total is shared out in proportion
    to what it kept beyond; of a cluster map, the total is shared out in proportion to the mean of each page group.
    Written: a cluster map. Sorted by share, four neighbours make a page group, which keeps what its largest member
    keeps.
    """

    name = "tangram"
    reads = frozenset({"ratio", "context", "sinks", "window"})
    writes = frozenset()

    def read(self, path: Path, options: Options) -> Budgets:
        arrays = read_archive(path)
        meta = _meta(arrays)
        ratio = self.ratio(options, path)
        if "cluster_members" in arrays:
            for name in ("context", "sinks", "window"):
                if getattr(options, name) is not None:
                    raise UserError(f"{path}: {name} has no effect on a cluster map; leave it out")
            weights, floor = self._of_groups(arrays, path), 0.0
        else:
            weights, floor = self._of_profile(arrays, meta, path, options), self._floor(arrays, meta, path, options)
        shares = water_fill(weights.ravel(), total=(1.0 - ratio) * weights.size, floor=floor)
        model = meta.get("model_name") or meta.get("source_model") or ""
        return self.imported(path, shares.reshape(weights.shape), options, model=model)

    def _of_profile(
        self, arrays: dict[str, NDArray[Any]], meta: dict[str, Any], path: Path, options: Options
    ) -> NDArray[np.float64]:
        axes = ("base ratios", "layers", "KV heads")
        retained = checked_numbers(_array(arrays, "ratio_per_head", path), path, "ratio_per_head", high=1.0, axes=axes)
        if len(retained) > 1:
            raise UserError(f"{path}: ratio_per_head: {len(retained)} base ratios; leave the one that is meant")
        return retained[0]

    def _floor(self, arrays: dict[str, NDArray[Any]], meta: dict[str, Any], path: Path, options: Options) -> float:
        """The share of the sinks and the window, which every KV cache keeps."""
        context = self.needs(options, "context", path, "sinks and window are tokens, of a context of unknown length")
        window = meta.get("window_size") if options.window is None else options.window
        rows = arrays.get("sample_meta", np.empty((0, 0)))
        known = rows.dtype.kind in "iu" and rows.ndim == 2 and rows.shape[1] > 1 and len(rows) > 0
        sinks = options.sinks if options.sinks is not None else int(rows[0, 1]) if known else None
        kept = 0
        for name, value in (("window", window), ("sinks", sinks)):
            if type(value) is not int or not 0 <= value <= MAX_TOKENS:
                raise UserError(f"{path}: tangram: the file does not say how many tokens are its {name}; give {name}")
            kept += value
        self.check_tokens(kept, context, path)
        return kept / context

    def _of_groups(self, arrays: dict[str, NDArray[Any]], path: Path) -> NDArray[np.float64]:
        scores = checked_numbers(_array(arrays, "rank_score", path), path, "rank_score")
        axes = ("groups", "KV caches", "layer and head")
        members = checked_numbers(_array(arrays, "cluster_members", path), path, "cluster_members", axes=axes)
        if members.shape[2] != 2 or (members >= scores.shape).any():
            raise UserError(f"{path}: cluster_members: a layer or KV head is not in rank_score {list(scores.shape)}")
        flat = members.astype(np.int64)
        if (flat != members).any():
            raise UserError(f"{path}: cluster_members: expected whole numbers")
        places = flat[..., 0] * scores.shape[1] + flat[..., 1]
        if not np.array_equal(np.sort(places, axis=None), np.arange(scores.size)):
            raise UserError(f"{path}: cluster_members: every KV cache must be in one group")
        grouped = np.empty(scores.size)
        grouped[places] = scores.ravel()[places].mean(1, keepdims=True)
        return grouped.reshape(scores.shape)

    def write(self, budgets: Budgets, output: Path, options: Options) -> Expressed:
        n = budgets.shares.size
        if n % PAGE_GROUP:
            raise UserError(f"{output}: tangram: {n} KV caches make no page groups of {PAGE_GROUP}")
        order = np.argsort(-budgets.shares.ravel(), kind="stable").reshape(-1, PAGE_GROUP)
        order = np.sort(order, axis=1)  # the members of a group by layer and head
        cluster, column = np.empty(n, np.int32), np.empty(n, np.int32)
        cluster[order] = np.arange(len(order))[:, None]
        column[order] = np.arange(PAGE_GROUP)
        flat = budgets.shares.ravel()
        expressed = np.empty(n)
        expressed[order] = flat[order].max(1, keepdims=True)
        meta = {
            "source_model": budgets.model,
            "base_ratio": 1.0 - budgets.ratio,
            "page_group_size": PAGE_GROUP,
            "num_layers": budgets.shape[0],
            "static_layer_ids": list(range(budgets.shape[0])),
            "num_kv_heads": budgets.shape[1],
            "num_clusters": len(order),
            "cluster_scope": "global",
        }
        content = io.BytesIO()
        np.savez(
            content,
            cluster_of=cluster.reshape(budgets.shape),
            column_of=column.reshape(budgets.shape),
            cluster_members=np.stack(np.divmod(order, budgets.shape[1]), -1).astype(np.int32),
            rank_score=budgets.shares.astype(np.float32),
            page_group_size=np.int32(PAGE_GROUP),
            base_ratio=np.float32(1.0 - budgets.ratio),
            meta=np.frombuffer(json.dumps(meta, indent=2).encode(), np.uint8),
        )
        with atomic(output) as unfinished:
            unfinished.write_bytes(content.getvalue())
        return Expressed(
            expressed.reshape(budgets.shape),
            f"page groups of {PAGE_GROUP} KV caches with neighbouring shares keep what the largest of them keeps",
            "counts: the server's scorer sets them per prompt, the map says which KV caches share pages",
        )


def _array(arrays: dict[str, NDArray[Any]], name: str, path: Path) -> NDArray[Any]:
    if name not in arrays:
        raise UserError(f"{path}: tangram: {name} is missing; give a profile or a cluster map")
    return arrays[name]


def _meta(arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """What the file says of itself, as JSON in bytes; nothing where that is no JSON."""
    try:
        meta = json.loads(bytes(arrays["meta"]).decode())
    except (LookupError, ValueError, TypeError, RecursionError):
        return {}
    return meta if isinstance(meta, dict) else {}
