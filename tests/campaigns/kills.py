"""SIGKILL at random moments of whole runs; the same command then ends like an undisturbed run.

A case kills one command up to five times, each time somewhere in what is left to do, and then lets
it finish. Weights, labels, predictions, scores and results must be those of the undisturbed run bit
for bit, and no other file may be left. A job of two ranks loses one rank or both; the rank that is
left must end by itself.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from campaigns.outcome import Outcome
from campaigns.recipes import TIMEOUT_S, Recipe, differences, draw, recipes, snapshot
from campaigns.states import run_there

# How often each recipe is drawn; a sweep and two ranks take several times as long as the others.
SHARES = {
    "bags of words": 4, "transformers": 6, "debate": 4, "generation": 4, "supervisors": 4,
    "sweep": 1, "two ranks": 2,
}  # fmt: skip
MOST = 5  # kills of a case
_POLL_S = 0.002
START, RESULTS = "start", "results"
# Short stages are missed more often than long ones; every run has a start, results and a report.
_WEIGHTS = {
    START: 0.3, RESULTS: 0.2, "report": 0.4, "labels": 2.0, "transcripts": 10.0, "features": 20.0,
    "votes": 4.0, "generated_votes": 10.0, "posterior": 8.0, "overlap": 15.0,
    "apply": 2.0, "trajectory": 15.0, "trust": 10.0, "control": 15.0, "ceiling": 1.0,
}  # fmt: skip
_CHECKPOINT = "in a checkpoint"  # while it is written


class Reference:
    """A recipe's undisturbed run: what it leaves, and how long its stages take."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        recipe.reset()
        begin, processes = time.monotonic(), recipe.start()
        while not _folders(recipe, hidden=True) and processes[0].poll() is None:
            time.sleep(_POLL_S)
        self.start_s = time.monotonic() - begin
        codes, output = recipe.finish(processes)
        seconds = time.monotonic() - begin
        if any(codes):
            raise RuntimeError(f"{recipe.name}: exit codes {codes}: {output[-2000:]}")
        self.files = snapshot(recipe.out)
        self.stages = Counter(_folders(recipe, hidden=False))
        self.stage_s: dict[str, float] = {}
        for meta in recipe.store.glob("*/stage.json"):
            stage = meta.parent.name.partition("-")[0]
            self.stage_s[stage] = json.loads(meta.read_bytes())["info"]["seconds"]
        total = sum(float(json.loads(m.read_bytes())["info"]["seconds"])
                    for m in recipe.store.glob("*/stage.json"))  # fmt: skip
        self.results_s = max(0.1, seconds - self.start_s - total)


def _folders(recipe: Recipe, *, hidden: bool) -> list[str]:
    """Return the stage of each folder of the store that is finished, or of each that is not."""
    names = []
    with contextlib.suppress(FileNotFoundError):
        for path in recipe.store.iterdir():
            stage, dash, _ = path.name.lstrip(".").partition("-")
            if dash and stage != "probe" and path.name.startswith(".") == hidden:
                names.append(stage)
    return names


def _writes_checkpoint(recipe: Recipe) -> bool:
    return any(True for _ in recipe.store.glob(".*/checkpoint/.step-*"))


def _hit(recipe: Recipe, moment: str) -> str:
    """Return where the kill hit, by what it left."""
    if _writes_checkpoint(recipe):
        return _CHECKPOINT
    if stages := _folders(recipe, hidden=True):
        return f"in stage {stages[0]}"
    finished = _folders(recipe, hidden=False)
    if "report" in finished:
        return "while writing results"
    return "between stages" if finished else "before the first stage"


def _draw(reference: Reference, rng: np.random.Generator) -> tuple[str, float, bool]:
    """Return a moment of what is left to do, how long after its beginning, and of a checkpoint."""
    left = reference.stages - Counter(_folders(reference.recipe, hidden=False))
    moments = [START, *sorted(left), RESULTS]
    weights = np.array([_WEIGHTS.get(moment, 1.0) for moment in moments])
    moment = moments[rng.choice(len(moments), p=weights / weights.sum())]
    times = {START: reference.start_s, RESULTS: reference.results_s}
    seconds = times.get(moment, reference.stage_s.get(moment, 0.1))
    return moment, rng.uniform(0, 1) * seconds, bool(rng.random() < 0.4)


def _wait(recipe: Recipe, process: Any, moment: str, seconds: float, checkpoint: bool) -> None:
    """Wait for the moment of a running command; return early if it ends."""

    def begun() -> bool:
        if moment == START:
            return True
        if moment == RESULTS:
            return "report" in _folders(recipe, hidden=False)
        return moment in _folders(recipe, hidden=True)

    while not begun():
        if process.poll() is not None:
            return
        time.sleep(_POLL_S)
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if checkpoint and _writes_checkpoint(recipe):
            return
        time.sleep(_POLL_S)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _outlived(pids: list[int]) -> list[int]:
    """Return the processes that still run 20 seconds later."""
    end = time.monotonic() + 20
    while (left := [p for p in pids if _runs(p)]) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _kill(reference: Reference, rng: np.random.Generator, resumed: bool) -> tuple[str, list[str]]:
    """Start the command and kill it; return where it was hit ("" if it ended before) and faults."""
    recipe = reference.recipe
    moment, seconds, checkpoint = _draw(reference, rng)
    alone = recipe.size > 1 and rng.random() < 0.5
    victim = int(rng.integers(recipe.size))
    processes = recipe.start()
    _wait(recipe, processes[victim], moment, seconds, checkpoint)
    if any(p.poll() is not None for p in processes):
        recipe.finish(processes)
        return "", []
    children = [c for p in processes for c in _children(p.pid)]
    for p in [processes[victim]] if alone else processes:
        p.kill()
    where = _hit(recipe, moment) + (", one rank of two" if alone else "")
    try:  # a rank that is left finds out by itself
        codes, output = recipe.finish(processes, timeout=TIMEOUT_S + 30)
    except subprocess.TimeoutExpired:
        return where, [f"{where}: the other rank did not end"]
    faults = [f"process {pid} outlived the kill" for pid in _outlived(children)]
    if "Traceback" in output or "error: " in (output if not alone else ""):
        faults.append(f"exit codes {codes} after the kill: {output[-300:]}")
    return where, faults


def run(cases: Iterable[int], seed: int, folder: Path, names: Iterable[str] = SHARES) -> Outcome:
    """Kill commands and compare; a case counts each of its kills."""
    outcome, references = Outcome(), {}
    with recipes(folder) as made:
        for index in cases:
            rng, name = draw(SHARES, names, seed, index)
            if name not in references:
                references[name] = Reference(made[name])
            _case(references[name], rng, index, outcome)
            print(index, name, outcome.kinds, file=sys.stderr, flush=True)
    return outcome


def _case(reference: Reference, rng: np.random.Generator, index: int, outcome: Outcome) -> None:
    recipe, hits = reference.recipe, []
    recipe.reset()
    for number in range(int(rng.integers(1, MOST + 1))):
        where, faults = _kill(reference, rng, number > 0)
        for fault in faults:
            outcome.fail(index, f"{recipe.name}: {fault}")
        if where:
            hits.append(where)
            outcome.cases += 1
            outcome.count(where)
            outcome.count(f"of {recipe.name}")
            if number:
                outcome.count("of a resumed run")
    reply = run_there(recipe)
    history = f"{recipe.name}, killed {'; '.join(hits)}"
    if reply.code:
        outcome.fail(index, f"{history}: exit code {reply.code}: {reply.errors[-400:]}")
        return
    # Nothing is damaged by a kill, so there is nothing to note.
    lines = differences(snapshot(recipe.out), reference.files) + reply.errors.splitlines()
    if lines:
        outcome.fail(index, f"{history}: {'; '.join(lines[:3])}")
