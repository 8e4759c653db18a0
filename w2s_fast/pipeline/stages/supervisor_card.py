"""Stage `supervisor_card`: what is known of the weak labels before any student is trained.

It is for people who decide whether a training is worth its cost. True labels of the transfer and
the test set score the supervisor here; no stage of a student reads the card.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast import metrics
from w2s_fast.errors import W2SError
from w2s_fast.files import write_json
from w2s_fast.pipeline.artifacts import CARD, LABELS, LOG, MODEL, TEST, VOTES, read_votes
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.predictions import Predictions
from w2s_fast.pipeline.stages.build_model import read_features
from w2s_fast.pipeline.task_kinds import task_kind
from w2s_fast.store import StageBuild
from w2s_fast.tasks import Examples
from w2s_fast.trust import probe_errors, word_features

MOST_PROBED = 2000  # rows of the probe; the split is in random order, so the first will do
LEAST_PROBED = 100  # of fewer, the interval says nothing
MOST_CLASSES = 12  # of a confusion matrix that is written whole
MOST_CONFUSED = 10  # pairs of classes of a larger one
MOST_SOURCES = 20  # supervisors that are compared with one another


def supervisor_card(ctx: Context, build: StageBuild) -> None:
    """Score the supervisor on the transfer and the test set, and probe its errors."""
    transfer, test = ctx.gold("transfer"), ctx.gold("test")
    kind = task_kind(ctx.task.kind)
    labels = kind.read(ctx.input("labels") / LABELS, transfer, ctx.task)
    predicted = kind.read(_test_predictions(ctx), test, ctx.task)
    record: dict[str, Any] = {
        "transfer": _scores(labels),
        "test": _scores(predicted),
        "classes": list(ctx.task.class_names),
        **_class_counts(labels),
        "probe": _probe(ctx, labels, transfer),
        "agreement": _source_agreement(ctx, transfer),
        "cost": _cost(ctx),
    }
    ctx.write(lambda: write_json(build.path / CARD, record))


def read_card(folder: Path) -> dict[str, Any]:
    """Return the record of a finished stage."""
    return json.loads((folder / CARD).read_bytes())


def _test_predictions(ctx: Context) -> Path:
    """Return the predictions of the test items: of the weak model, or of many supervisors."""
    if "model" in dict(ctx.job.inputs):
        return ctx.input("model") / TEST
    return ctx.input("test") / LABELS


def _scores(predicted: Predictions) -> dict[str, Any]:
    """Return size and accuracy; with probabilities also the calibration."""
    return {
        "n": len(predicted.gold),
        "accuracy": predicted.accuracy,
        "calibration": predicted.calibration(),
    }


def _class_counts(labels: Predictions) -> dict[str, Any]:
    """Return the class balance and the confusion of the weak labels; None for generation."""
    if labels.probs is None:
        return {"balance": None, "confusion": None, "confused": None}
    counts = metrics.confusion(labels.chosen, labels.gold, labels.n_classes)
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    pairs = [(*divmod(int(i), len(counts)), int(wrong.flat[i])) for i in order]
    return {
        "balance": {"true": counts.sum(1).tolist(), "weak": counts.sum(0).tolist()},
        "confusion": counts.tolist() if len(counts) <= MOST_CLASSES else None,
        "confused": [list(pair) for pair in pairs if pair[2]],
    }


def _probe(ctx: Context, labels: Predictions, transfer: Examples) -> dict[str, Any]:
    """Return the scores of a probe of the errors; ``reason`` says why there are none."""
    if labels.probs is None:
        return {"reason": "the probe is for tasks with classes"}
    if len(transfer.ids) < LEAST_PROBED:
        return {"reason": f"{len(transfer.ids)} items are too few, {LEAST_PROBED} are needed"}
    rows = slice(MOST_PROBED)
    if "features" in dict(ctx.job.inputs):
        source = "hidden states of the untrained student"
        features = read_features(ctx.input("features"))[rows].float().numpy()
    else:
        source = "words of the texts"
        pairs = transfer.pairs or ("",) * len(transfer.texts)
        both = [f"{a} {b}" for a, b in zip(transfer.texts[rows], pairs[rows], strict=True)]
        features = word_features(both)
    try:
        probe = probe_errors(
            features,
            labels.probs[rows],
            transfer.labels[rows],
            groups=np.array(transfer.groups[rows]),
            seed=ctx.job.seed or 0,
        )
    except W2SError as err:
        return {"reason": str(err)}
    return {"reason": None, "features": source, **probe.as_dict()}


def _source_agreement(ctx: Context, transfer: Examples) -> dict[str, Any] | None:
    """Return how often each pair of supervisors agrees; None for a single weak model."""
    path = ctx.input("labels") / VOTES
    if not path.exists():
        return None
    names, votes = read_votes(path, transfer.ids)
    share, both = metrics.vote_agreement(votes[:, :MOST_SOURCES])
    return {
        "names": names[:MOST_SOURCES],
        "omitted": max(0, len(names) - MOST_SOURCES),
        "share": [[None if math.isnan(s) else s for s in row] for row in share.tolist()],
        "n": both.tolist(),
    }


def _cost(ctx: Context) -> dict[str, Any]:
    """Return the stages that the labels took, and size and training of the weak model.

    Seconds are not content; ``provenance.stages`` of results.json has them for each stage.
    """
    cost: dict[str, Any] = {"stages": [n for a, n in ctx.job.inputs if a != "features"]}
    if "model" not in dict(ctx.job.inputs):
        return cost | {"parameters": None, "steps": None, "tokens": None}
    log = json.loads((ctx.input("model") / LOG).read_bytes())
    tokens = log.get("tokens")  # not recorded by earlier versions
    return cost | {
        "parameters": _stored_parameters(ctx.input("model") / MODEL),
        "steps": log["steps"],
        "tokens": sum(tokens) if tokens else None,
    }


def _stored_parameters(path: Path) -> int:
    """Return the number of trained parameters, from the header of their file."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as f:
        return sum(math.prod(f.get_slice(name).get_shape()) for name in f.keys())  # noqa: SIM118
