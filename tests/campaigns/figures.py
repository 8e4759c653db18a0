"""Committed rows of the campaigns, one each, and the tables of docs/robustness.md."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness.environment import ROOT, environment
from bench.report.documents import regenerate
from campaigns.outcome import Outcome

ROWS = Path(__file__).with_name("figures.json")
PAGE = ROOT / "docs" / "robustness.md"
_COLUMNS = {
    "utc": "date", "git_sha": "commit", "cpu": "processor", "python": "python", "torch": "torch",
}  # fmt: skip

Row = Mapping[str, Any]


def machine() -> dict[str, Any]:
    """Return what a row says of date, source and machine.

    Raises:
        ValueError: The source tree differs from its commit, so that no commit names it.
    """
    facts = environment()
    if facts["dirty"] or _changes("tests", f":!{ROWS.relative_to(ROOT)}"):
        raise ValueError("the tree has changes; commit them, or leave out --record")
    return {column: facts[name] for name, column in _COLUMNS.items()}


def _changes(*paths: str) -> str:
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--", *paths]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def row(
    name: str, outcome: Outcome, seed: int, seconds: float, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the row of a campaign."""
    return {
        "campaign": name,
        "cases": outcome.cases,
        "kinds": dict(sorted(outcome.kinds.items())),
        "failures": outcome.failures,
        "seed": seed,
        "seconds": round(seconds),
        **facts,
    }


def record(new: Row, path: Path = ROWS) -> None:
    """Write a row in place of the campaign's older one."""
    others = [r for r in load(path) if r["campaign"] != new["campaign"]]
    rows = sorted([*others, new], key=lambda r: str(r["campaign"]))
    path.write_text(json.dumps(rows, indent=1) + "\n")


def load(path: Path = ROWS) -> list[dict[str, Any]]:
    """Return the committed rows."""
    return json.loads(path.read_text()) if path.is_file() else []


def table(rows: Sequence[Row]) -> str:
    """Return the table of counts."""
    lines = [
        "| campaign | cases | failures | seed | minutes | date | commit |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for r in rows:
        cells = [f"`{r['campaign']}`", f"{r['cases']:,}", len(r["failures"]), r["seed"]]
        cells += [f"{r['seconds'] / 60:.0f}", r["date"][:10], r["commit"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    machines = {f"{r['processor']}, Python {r['python']}, torch {r['torch']}" for r in rows}
    return "\n".join([*lines, "", *sorted(machines), ""])


def kinds(rows: Sequence[Row]) -> str:
    """Return what each campaign hit, and every failure."""
    blocks = []
    for r in rows:
        counts = ", ".join(f"{kind} {n:,}" for kind, n in r["kinds"].items())
        blocks.append(f"- `{r['campaign']}`: {counts}.\n")
        blocks += [f"  - failure: {line}\n" for line in r["failures"]]
    return "".join(blocks)


def report(page: Path = PAGE, rows_file: Path = ROWS, *, check: bool = False) -> bool:
    """Write the generated tables of the page; return whether it was equal before."""
    text = page.read_text()
    new = regenerate(text, {"campaigns": table, "kinds": kinds}, load(rows_file))
    if new != text and not check:
        page.write_text(new)
    return new == text
