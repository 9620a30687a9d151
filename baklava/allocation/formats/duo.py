"""DuoAttention's `full_attention_heads.tsv`: a gate per KV head, with sink and window sizes in `config.json`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from baklava.allocation.duo import greedy_shares
from baklava.allocation.formats.base import MAX_TOKENS, Expressed, Format, Options
from baklava.budgets import Budgets
from baklava.errors import UserError, first_line
from baklava.system.files import atomic, write_plain_json
from baklava.system.foreign_files import checked_numbers, read_object, read_text

GATES = "full_attention_heads.tsv"
SINKS, WINDOW = 64, 256  # what the authors deploy


class DuoFormat(Format):
    """Full heads keep everything, streaming heads a number of first and last tokens.

    Read: in order of their gates as many heads are full as the ratio allows, the others keep sinks and window, as
    shares of the context. Written: the heads with the largest shares are full (gate 1), as many as the total allows
    beside the sinks and windows of the others (gate 0).
    """

    name = "duo"
    reads = frozenset({"ratio", "context", "sinks", "window"})
    writes = frozenset({"context", "sinks", "window"})

    def read(self, path: Path, options: Options) -> Budgets:
        gates = path / GATES if path.is_dir() else path
        text = read_text(gates)
        try:
            values: Any = np.loadtxt(io.StringIO(text), delimiter="\t", ndmin=2, comments=None) if text.strip() else []
        except ValueError as error:
            raise UserError(f"{gates}: not a table of numbers separated by tabs ({first_line(error)})") from None
        scores = checked_numbers(values, gates, "gates", high=1.0)
        ratio = self.ratio(options, gates)
        context = self.needs(options, "context", gates, "sinks and window are tokens, of a context of unknown length")
        config = self._config(gates, options)
        kept = sum(
            self._tokens(options, config, gates, *names)
            for names in (("sinks", "sink_size"), ("window", "recent_size"))
        )
        self.check_tokens(kept, context, gates)
        shares = greedy_shares(scores, ratio, floor=kept / context)
        return self.imported(gates, shares, options, model=config.get("model_name", ""))

    def _config(self, gates: Path, options: Options) -> dict[str, Any]:
        config = gates.with_name("config.json")
        if options.sinks is not None and options.window is not None and not config.exists():
            return {}
        if not config.exists():
            raise UserError(f"{gates}: no config.json beside it says how many tokens stay; give sinks and window")
        return read_object(config)

    def _tokens(self, options: Options, config: dict[str, Any], gates: Path, name: str, key: str) -> int:
        given = getattr(options, name)
        value = config.get(key) if given is None else given
        if type(value) is not int or not 0 <= value <= MAX_TOKENS:
            raise UserError(f"{gates.with_name('config.json')}: {key}: expected a number of tokens, got {value!r}")
        return value

    def write(self, budgets: Budgets, output: Path, options: Options) -> Expressed:
        context = self.needs(options, "context", output, "streaming heads keep tokens, of a context of unknown length")
        sinks = SINKS if options.sinks is None else options.sinks
        window = WINDOW if options.window is None else options.window
        streaming, mean = (sinks + window) / context, float(budgets.shares.mean())
        if streaming > mean or streaming >= 1.0:
            raise UserError(
                f"{output}: duo: {sinks} sinks and a window of {window} are {streaming:.3f} of {context} tokens, the "
                f"budgets keep {mean:.3f}; lower them or raise context"
            )
        n_full = int(budgets.shares.size * (mean - streaming) / (1.0 - streaming) + 1e-9)
        rank = np.argsort(np.argsort(-budgets.shares.ravel(), kind="stable"), kind="stable")
        full = (rank < n_full).reshape(budgets.shape)
        table = io.StringIO()
        np.savetxt(table, full.astype(np.float64), delimiter="\t")
        with atomic(output / GATES) as unfinished:
            unfinished.write_text(table.getvalue(), encoding="utf-8")
        config = {"model_name": budgets.model, "sink_size": sinks, "recent_size": window, "threshold": 0.5}
        write_plain_json(output / "config.json", config)
        return Expressed(
            np.where(full, 1.0, streaming),
            f"the {n_full} KV caches with the largest shares are full, {sinks} sinks and a window of {window} tokens "
            f"stay of the others, in contexts of {context} tokens",
            "which heads are nearly full: every gate is 0 or 1",
        )
