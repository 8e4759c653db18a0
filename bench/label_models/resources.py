"""Time label models against Snorkel's in one process, and measure their peak memory."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.harness.cpu_timing import Candidate, interleave
from bench.harness.peak_memory import peaks
from w2s_fast.label_models import DawidSkene, MeTaL, Triplets

ROUNDS = 5
# Fits of many sources and classes. MeTaL refuses: it needs the moments of all pairs of classes.
_LARGE: dict[str, Callable[[int], Any]] = {
    "Triplets": lambda k: Triplets(k, class_balance="uniform"),
    "DawidSkene": lambda k: DawidSkene(k, class_balance="uniform", max_iter=10),  # all are alike
}
MANY = {"n": 20_000, "m": 1000, "k": 50, "coverage": 0.1}  # a thousand sources of fifty classes


def simulated_votes(n: int, m: int, k: int, coverage: float) -> tuple[Tensor, Tensor]:
    """Draw (votes, classes) of independent sources with accuracies from .55 to .9."""
    g = torch.Generator().manual_seed(0)
    classes = torch.randint(k, (n,), generator=g)
    accuracy = 0.55 + 0.35 * torch.rand(m, generator=g)
    wrong = (classes[:, None] + torch.randint(1, k, (n, m), generator=g)) % k
    votes = torch.where(torch.rand(n, m, generator=g) < accuracy, classes[:, None], wrong)
    return votes.masked_fill(torch.rand(n, m, generator=g) >= coverage, -1), classes


def speed(quick: bool) -> Iterator[dict[str, Any]]:
    """Yield times of a fit to 100,000 rows of 50 sources, balanced classes given to all."""
    n = 2000 if quick else 100_000
    votes, classes = simulated_votes(n, 50, 2, 0.65)
    narrow = votes.to(torch.int8)  # as a caller may hold them; Snorkel takes both
    models = {
        "Triplets": lambda: Triplets(2, class_balance="uniform").fit(votes),
        "Triplets, votes of int8": lambda: Triplets(2, class_balance="uniform").fit(narrow),
        "MeTaL": lambda: MeTaL(2, class_balance="uniform").fit(votes),
        "DawidSkene": lambda: DawidSkene(2, class_balance="uniform").fit(votes),
    }
    fits: dict[str, Callable[[], Any]] = dict(models)
    if importlib.util.find_spec("snorkel"):
        importlib.import_module("snorkel.labeling.model")  # seconds, which no fit should pay
        fits["Snorkel LabelModel"] = partial(_snorkel, votes.numpy())
    samples = interleave({name: Candidate(f) for name, f in fits.items()}, 1 if quick else ROUNDS)
    for name, fit in fits.items():
        model, numbers = fit(), samples[name].summary()
        probs = model.posterior(votes) if name in models else model.predict_proba(votes.numpy())
        right = torch.as_tensor(probs).argmax(1) == classes
        accuracy = round(float(right.double().mean()), 5)
        yield {
            "provider": name, "n": n, "m": 50, "k": 2, "accuracy": accuracy,
            **{key: float(f"{numbers[key]:.5g}") for key in ("cpu_ms", "wall_ms", "wall_ms_p50")},
        }  # fmt: skip


def _snorkel(votes: Any) -> Any:
    """Fit Snorkel's model with its defaults: 100 epochs, balanced classes."""
    from snorkel.labeling.model import LabelModel

    model = LabelModel(cardinality=2, verbose=False)
    model.fit(votes, progress_bar=False, seed=0)
    return model


def memory(quick: bool, threads: int) -> Iterator[dict[str, Any]]:
    """Yield the peak memory of a fit to a thousand sources of fifty classes, beyond the votes."""
    size = {**MANY, "n": 500, "m": 60} if quick else MANY
    found = peaks(
        list(_LARGE), partial(_prepare, size), threads, ["w2s_fast.label_models", "scipy"]
    )
    for provider, mib in found.items():
        yield {"provider": provider, **size, "peak_mib": round(mib, 1)}


def _prepare(
    size: dict[str, Any], provider: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    votes, _ = simulated_votes(**size)
    # A new model each time: what an earlier fit left in one would count as there before.
    return lambda: _LARGE[provider](size["k"]).fit(votes), lambda: None
