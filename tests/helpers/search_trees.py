"""Files of search trees for tests."""

from __future__ import annotations

import json
from pathlib import Path

from w2s_fast.config import RunConfig


def write_trees(path: Path, cfg: RunConfig, wrong: str = "9") -> Path:
    """Write a tree of two levels for every third prompt of the run's file, also of other splits."""
    lines = []
    rows = [json.loads(line) for line in Path(cfg.task.path or "").read_text().splitlines()]
    for number, row in enumerate(rows[::3]):
        first = {"id": "a", "parent": None, "text": " the sum is", "value": 0.8}
        other = {"id": "b", "parent": None, "text": " who knows", "value": 0.1}
        right = {"id": "c", "parent": "a", "text": row["answer"], "value": 1.0}
        bad = {"id": "d", "parent": "a", "text": f" {wrong}{number}", "value": 0.0}
        nodes = [first, other, right, bad]
        lines.append(json.dumps({"id": number, "prompt": row["prompt"], "nodes": nodes}))
    path.write_text("\n".join(lines) + "\n")
    return path
