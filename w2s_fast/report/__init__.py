"""Present a run's results.json: terminal tables, a figure, an HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.report.check_results import problem
from w2s_fast.version import __version__

RESULTS, PLOT, PAGE = "results.json", "plot", "report.html"
DECEPTION_PLOT = "deception"  # of runs with a conflict

__all__ = ["DECEPTION_PLOT", "PAGE", "PLOT", "RESULTS", "load_results"]


def load_results(out: Path) -> dict[str, Any]:
    """Read results.json of an earlier run.

    Raises:
        W2SError: The file is missing, damaged, or of a version that wrote other fields.
    """
    path = out / RESULTS
    try:
        results = json.loads(path.read_bytes())
    except FileNotFoundError as err:
        raise W2SError(f"no {RESULTS} in {out}; run `w2s-fast run --out {out}` first") from err
    except (OSError, ValueError, RecursionError) as err:
        raise W2SError(f"{path} cannot be read ({err}); run `w2s-fast run` again") from err
    if reason := problem(results):
        raise W2SError(
            f"{path} cannot be shown: {reason}{_writer(results)}; run `w2s-fast run` again, "
            "which computes only what is not stored"
        )
    return results


def _writer(results: Any) -> str:
    """Return which version wrote the results, if it is known and another one."""
    try:
        version = str(results["provenance"]["versions"]["w2s_fast"])
    except (KeyError, TypeError):
        return ""
    return "" if version == __version__ else f" (written by w2s_fast {version[:20]!r})"
