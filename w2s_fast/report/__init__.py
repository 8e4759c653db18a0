"""Present a run's results.json: terminal tables, a figure, an HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError

RESULTS, PLOT, PAGE = "results.json", "plot", "report.html"

__all__ = ["PAGE", "PLOT", "RESULTS", "load_results"]


def load_results(out: Path) -> dict[str, Any]:
    """Read results.json of an earlier run.

    Raises:
        W2SError: The file is missing or damaged.
    """
    path = out / RESULTS
    try:
        results = json.loads(path.read_bytes())
        if missing := {"runs", "summary", "gold", "provenance"} - results.keys():
            raise ValueError(f"{', '.join(sorted(missing))} is missing")
    except FileNotFoundError as err:
        raise W2SError(f"no {RESULTS} in {out}; run `w2s-fast run --out {out}` first") from err
    except (OSError, ValueError, AttributeError) as err:
        raise W2SError(f"{path} cannot be read ({err}); run `w2s-fast run` again") from err
    return results
