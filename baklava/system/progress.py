"""Progress bars that say once, in a line of its own, how long the rest will take."""

from __future__ import annotations

from tqdm import tqdm

from baklava.system.job_log import tell

AFTER = 10.0  # seconds of work from which the rest is estimated,
FRACTION = 0.05  # and how much of it: many answers begin together, and the first reading of prompts takes longest
WORTH_SAYING = 60.0  # seconds that the rest takes at least, for a line


class Progress(tqdm):
    """A `tqdm` that estimates the rest after some seconds; the line goes to the terminal too where a log is written."""

    _estimated = False

    def update(self, n: float | None = 1) -> bool | None:
        shown = super().update(n)
        values = self.format_dict
        if not self._estimated and self.total and self.n >= FRACTION * self.total and values["elapsed"] >= AFTER:
            self._estimated = True
            rate = values["rate"] or self.n / values["elapsed"]  # of late, where tqdm knows it
            remaining = (self.total - self.n) / rate
            if remaining >= WORTH_SAYING:
                done = f"{self.n:g} of {self.total:g} {self.unit}s"
                tell(f"{self.desc}: about {describe_duration(remaining)} to go ({done})")
        return shown


def describe_duration(seconds: float) -> str:
    """Minutes below an hour and a half, else hours."""
    return f"{max(1, round(seconds / 60))} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
