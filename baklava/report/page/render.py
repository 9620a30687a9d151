"""Fill the templates: everything is escaped, nothing loads from elsewhere, no script runs but the page's own."""

from __future__ import annotations

import base64
import hashlib
import math
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from baklava.report.page.view import PageView, view_to_json
from baklava.system.units import choose_unit

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Fill `template` with `values`; the JSON that the script reads is escaped for HTML too."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False}
    environment.globals.update(own=_own, plotly=Markup(get_plotlyjs()), policy=_policy, data=_data)
    return environment.get_template(template).render(**values)


def _own(name: str) -> Markup:
    """One of our style sheets or scripts, unescaped."""
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _policy(*scripts: Markup) -> str:
    """The content security policy: nothing from elsewhere, and no script but these."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _data(views: list[PageView], cells: pd.DataFrame) -> dict[str, Any]:
    """The figures, all rows of the summary, and the unit of its bytes; JSON has no NaN, so NaN becomes null."""
    rows = [
        [None if isinstance(value, float) and math.isnan(value) else value for value in row]
        for row in cells.astype(object).to_numpy().tolist()
    ]
    unit, size = choose_unit(float(cells["kv_bytes"].max()))
    return {
        "views": [view_to_json(view) for view in views],
        "columns": list(cells.columns),
        "rows": rows,
        "unit": {"name": unit, "bytes": size},
    }
