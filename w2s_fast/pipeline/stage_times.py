"""Expected seconds of stages, from the stored stages that were computed with similar settings.

Stored seconds are those of the machine that computed them, and of its data: a run with more rows or
on another machine takes another time.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from w2s_fast.files import content_hash, read_text
from w2s_fast.store import META_NAME

# What hardly changes the time of a stage: draws, and which loss a training minimises.
_NO_COST = ("seed", "seeds", "rounding", "member", "loss", "losses")


class StageTimes:
    """Seconds of the stages in a store, by what decides how long a stage takes.

    Args:
        root: Folder of the store; it need not exist. It is only read.
    """

    def __init__(self, root: Path) -> None:
        self._seconds: dict[str, list[float]] = {}
        for meta in map(_read, sorted(root.glob(f"*/{META_NAME}"))):
            if meta is not None:
                for key in _cost_keys(meta["stage"], meta["config"]):
                    self._seconds.setdefault(key, []).append(float(meta["info"]["seconds"]))

    def expect(self, stage: str, config: Mapping[str, Any]) -> float | None:
        """Return the median seconds of the stages most like this one; None if none is like it.

        Most alike are stages of this name with the same settings but for seed and loss; then
        trainings of the same model with the same hyper-parameters, or, of stages without a model,
        all of this name.

        Args:
            stage: Name of the stage.
            config: ``config_slice`` of its job.
        """
        for key in _cost_keys(stage, config):
            if key in self._seconds:
                return statistics.median(self._seconds[key])
        return None


def _cost_keys(stage: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield keys of stages that take about as long, the most alike first."""
    yield content_hash([stage, _without_draws(config)])
    if "train" in config:
        yield content_hash([config["model"], config["train"], config["device"]])
    elif "model" not in config:
        yield content_hash([stage])


def _without_draws(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_draws(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in _NO_COST
    }


def _read(path: Path) -> dict[str, Any] | None:
    """Return the record of a stage, None if it is damaged or of another version."""
    try:
        meta: dict[str, Any] = json.loads(read_text(path))
        list(_cost_keys(meta["stage"], meta["config"]))
        float(meta["info"]["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return meta
