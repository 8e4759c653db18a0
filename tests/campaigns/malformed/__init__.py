"""Malformed inputs of every kind: each is one clear line, before anything is trained.

An input is a valid one with one fault, or is drawn by a rule of the fault. The command has to end
with an exit code that is not 0 and one line that names what is wrong, without a stage computed, or
to finish with whole results where the input may be valid after all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random

from campaigns.malformed import (
    checkpoints,
    data_files,
    endpoint,
    hub,
    launches,
    settings,
    stores,
)
from campaigns.malformed.attempt import problem
from campaigns.outcome import Outcome

KINDS: dict[str, Mapping[str, settings.Make]] = {
    "configuration": settings.FAULTS,
    "data file": data_files.FAULTS,
    "checkpoint": checkpoints.FAULTS,
    "label store": stores.FAULTS,
    "endpoint reply": endpoint.FAULTS,
    "hostfile": launches.HOSTFILES,
    "sweep": launches.SWEEPS,
    "DeepSpeed settings": launches.DEEPSPEED,
    "environment": launches.ENVIRONMENT,
    "hub data": hub.FAULTS,
}
FRESH_EVERY = 41  # one case in as many runs in a process of its own


def run(cases: Iterable[int], seed: int, folder: Path) -> Outcome:
    """Run the cases; kinds of input take turns, and the faults of a kind."""
    outcome = Outcome()
    for index in cases:
        kind, fault = _which(index)
        cwd = folder / str(index)
        cwd.mkdir()
        attempt = KINDS[kind][fault](cwd, Random(f"{seed}/{index}"))
        outcome.cases += 1
        outcome.count(kind)
        if message := problem(attempt, cwd, fresh=index % FRESH_EVERY == 0):
            outcome.fail(index, f"{kind}, {fault}: w2s-fast {_shown(attempt.args)}: {message}")
    return outcome


def _which(index: int) -> tuple[str, str]:
    kind = list(KINDS)[index % len(KINDS)]
    faults = list(KINDS[kind])
    return kind, faults[index // len(KINDS) % len(faults)]


def _shown(args: list[str]) -> str:
    return " ".join(args)[:200]
