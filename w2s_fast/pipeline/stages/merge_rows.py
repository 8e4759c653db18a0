"""Students made of the weights of others, as results.json has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.pipeline.artifacts import LOG, SWEEP


def merge_rows(
    seed: int, name: str, folder: Path, gold: np.ndarray | None
) -> Iterator[dict[str, Any]]:
    """Yield what a student was made of, first what was made last; nothing for a trained one.

    Args:
        seed: Seed of the run.
        name: Name of the student.
        folder: Folder of its stage.
        gold: (N,) true classes of the test items, which score every coefficient; None: they have
            none.
    """
    record = json.loads((folder / LOG).read_bytes()).get("merge")
    swept = folder / SWEEP
    while record is not None:
        record, before = dict(record), record.get("before")
        record.pop("before", None)
        if record["how"] == "interpolation":
            record["accuracy"] = None
            if gold is not None and swept.exists():
                chosen = np.load(swept, allow_pickle=False).argmax(2)
                record["accuracy"] = (chosen == gold).mean(1).tolist()
        yield {"seed": seed, "name": name, **record}
        record, swept = before, folder / "absent"
