"""Damage to every kind of file that a run or a kill leaves, then the same command.

A case damages one file of a finished or a killed run. The command must end like an undisturbed run,
with at most a few notes, or fail with one line that is an error message.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from campaigns.damages import DAMAGES, WEIGHTS, restore
from campaigns.outcome import Outcome
from campaigns.recipes import draw, recipes
from campaigns.states import Subject, fault, run_here, run_there

# Two ranks take several processes, and so many times as long.
SHARES = {
    "bags of words": 5, "transformers": 5, "debate": 5, "generation": 4, "supervisors": 3,
    "sweep": 1, "two ranks": 1,
}  # fmt: skip


def run(cases: Iterable[int], seed: int, folder: Path, names: Iterable[str] = SHARES) -> Outcome:
    """Damage files; a case is one file."""
    outcome, subjects = Outcome(), {}
    with recipes(folder) as made:
        for index in cases:
            rng, name = draw(SHARES, names, seed, index)
            if name not in subjects:
                subjects[name] = Subject(made[name])
            _case(subjects[name], rng, index, outcome)
            if index % 10 == 0:
                print(index, name, file=sys.stderr, flush=True)
    return outcome


def _case(subject: Subject, rng: np.random.Generator, index: int, outcome: Outcome) -> None:
    recipe = subject.recipe
    state = subject.states[rng.integers(len(subject.states))]
    kind = sorted(state.files)[rng.integers(len(state.files))]
    name = state.files[kind][rng.integers(len(state.files[kind]))]
    damage = list(DAMAGES)[rng.choice(len(DAMAGES), p=WEIGHTS)]
    restore(state.folder, recipe.out)
    others = [recipe.out / n for n in state.files[kind] if n != name]
    DAMAGES[damage](recipe.out / name, rng, others)
    if damage == "no permission":
        reply = run_there(recipe, W2S_CAMPAIGN_OBEY="1")
    else:
        reply = run_here(recipe)
    outcome.cases += 1
    outcome.count(f"file: {kind}")
    outcome.count(f"damage: {damage}")
    outcome.count("ended with one line" if reply.code else "ended like an undisturbed run")
    if wrong := fault(reply, recipe, subject.files):
        outcome.fail(index, f"{recipe.name}, {state.name}, {name} {damage}: {wrong}")
