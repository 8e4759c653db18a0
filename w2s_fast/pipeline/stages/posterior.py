"""Stage `posterior`: fit a label model to the votes of the transfer split, and label a split.

The fit takes no true label. It is repeated for every split, since that costs less than training.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np

from w2s_fast.config import RunConfig
from w2s_fast.errors import DataWarning, W2SError
from w2s_fast.files import write_json
from w2s_fast.methods import Targets
from w2s_fast.pipeline.artifacts import GATE, SUPERVISORS, VOTES, read_votes, write_votes
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.calibration import read_calibration
from w2s_fast.pipeline.stages.method_inputs import write_labels
from w2s_fast.store import StageBuild
from w2s_fast.supervisors.row_weights import row_weights

FITTED = "transfer"


def posterior(ctx: Context, build: StageBuild) -> None:
    """Label a split with the posterior, and weigh the rows of the transfer split."""
    split = ctx.job.setting("split")
    items = ctx.inputs(split)
    names, fitted = _votes(ctx, FITTED)
    kept = _kept(ctx, len(names))
    dropped = [name for name, keep in zip(names, kept, strict=True) if not keep]
    names = [name for name, keep in zip(names, kept, strict=True) if keep]
    fitted = fitted[:, kept]
    model = _fit(ctx, fitted, quiet=split != FITTED)
    matrix = fitted if split == FITTED else _votes(ctx, split)[1][:, kept]
    probs = model.posterior(matrix).numpy().astype(np.float32)
    if "calibrator" in dict(ctx.job.inputs):
        probs = read_calibration(ctx.input("calibrator"))[0](probs)
    covered = np.any(matrix >= 0, axis=1)
    weight = row_weights(probs, covered, ctx.job.setting("row_weight", "equal"))
    if weight is not None and not weight.any():
        raise W2SError(
            f"supervisors.row_weight={ctx.job.setting('row_weight')!r} gives every one of "
            f"{len(items)} transfer texts the weight 0; use row_weight: covered, or more sources"
        )
    ctx.write(lambda: write_labels(build.path, items, Targets(probs, weight)))
    ctx.write(lambda: write_votes(build.path / VOTES, items.ids, names, matrix))
    if split == FITTED:
        record = {**_record(names, fitted, model, ctx.n_classes), "dropped": dropped}
        ctx.write(lambda: write_json(build.path / SUPERVISORS, record))


def _votes(ctx: Context, split: str) -> tuple[list[str], np.ndarray]:
    """Return names (m) and votes (N, m) of all sources, in their order."""
    ids = ctx.inputs(split).ids
    inputs = [name for name, _ in ctx.job.inputs if name.rstrip("0123456789") == split]
    parts = [read_votes(ctx.input(name) / VOTES, ids) for name in inputs]
    return [name for names, _ in parts for name in names], np.concatenate(
        [votes for _, votes in parts], 1
    )


def _kept(ctx: Context, n_sources: int) -> np.ndarray:
    """Return (m,) bool: the sources that the gate keeps, all without a gate."""
    if "gate" not in dict(ctx.job.inputs):
        return np.ones(n_sources, dtype=bool)
    return np.array(json.loads((ctx.input("gate") / GATE).read_bytes())["kept"])


def _fit(ctx: Context, votes: np.ndarray, quiet: bool) -> Any:
    """Return the label model, fitted; its warnings were shown already if ``quiet``."""
    model = make_model(ctx.cfg, ctx.n_classes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        try:
            model.fit(votes)
        except W2SError as err:
            raise W2SError(
                f"supervisors.label_model={ctx.cfg.supervisors.label_model!r} cannot be fitted to "
                f"the votes of the transfer split: {err}"
            ) from err
    for warning in [] if quiet else caught:
        text = f"supervisors, numbered from 0 in the order of the report: {warning.message}"
        warnings.warn(text, warning.category, stacklevel=2)
    return model


def make_model(cfg: RunConfig, n_classes: int) -> Any:
    """Return the label model of a run, not fitted.

    Raises:
        W2SError: Its spec or its class balance does not fit.
    """
    from w2s_fast.label_models import make_label_model

    block = cfg.supervisors
    return make_label_model(block.label_model, n_classes, block.balance)


def _record(names: list[str], votes: np.ndarray, model: Any, n_classes: int) -> dict[str, Any]:
    """Return what votes and label model say of the supervisors, without any true label."""
    cast = votes >= 0
    return {
        "names": names,
        "coverage": cast.mean(0).tolist(),
        "estimated_accuracy": _estimated_accuracy(model, n_classes),
        "prior": model.prior.tolist() if hasattr(model, "prior") else None,
        "covered": float(cast.any(1).mean()),
        "conflicts": float(_conflicts(votes).mean()),
        "independence": _independence(model, votes),
    }


def _estimated_accuracy(model: Any, n_classes: int) -> list[float | None] | None:
    """Return the accuracy of the votes that every source casts by its rates; None without rates."""
    if not hasattr(model, "rates"):
        return None
    own = np.arange(n_classes)
    joint = model.prior.numpy()[:, None] * model.rates.numpy()[:, :, :n_classes]
    cast = joint.sum((1, 2))
    right = joint[:, own, own].sum(1)
    return [float(r / c) if c > 0 else None for r, c in zip(right, cast, strict=True)]


def _conflicts(votes: np.ndarray) -> np.ndarray:
    """Return (N,) bool: rows for which supervisors vote for different classes."""
    low = np.where(votes < 0, np.iinfo(votes.dtype).max, votes).min(1)
    return votes.max(1) > low


def _independence(model: Any, votes: np.ndarray) -> dict[str, Any] | None:
    """Return whether the model's assumption of independence is refuted, and by how many pairs."""
    from w2s_fast.label_models import independence_test

    if not hasattr(model, "rates") or getattr(model, "abstain", "symbol") != "symbol":
        return None
    test = independence_test(model, votes)
    return {"refuted": test.refuted, "pairs": len(test.pairs)}
