"""Shows a result: terminal table, plot, page. Reads only what results.json holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError

RESULTS, PLOT, PAGE = "results.json", "plot", "report.html"

__all__ = ["PAGE", "PLOT", "RESULTS", "load_results", "write_report"]


def write_report(out: Path, results: Mapping[str, Any]) -> None:
    """Write plot.png, plot.svg and report.html into ``out``, each whole or not at all.

    Args:
        out: An existing folder.
        results: What results.json holds.
    """
    from w2s_fast.report.page import page
    from w2s_fast.report.plot import render
    from w2s_fast.store import write_bytes

    for kind in ("png", "svg"):
        write_bytes(out / f"{PLOT}.{kind}", render(results, kind))
    write_bytes(out / PAGE, page(results).encode())


def load_results(out: Path) -> dict[str, Any]:
    """Return results.json of an earlier run.

    Raises:
        W2SError: There is none, or it is damaged.
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
