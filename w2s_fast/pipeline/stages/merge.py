"""Students made of the weights of trained ones: soups, and interpolation with initial weights.

Which weights are taken is decided by agreement with the weak labels of held-out rows, which none of
the students was trained on. True labels of the test items enter in the report alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2s_fast.config import model_of, train_of
from w2s_fast.methods._merge import trained_inputs_of
from w2s_fast.models.soup import Soup, greedy_members, lora_layers
from w2s_fast.models.weights import load_module, read_tensors, save_weights
from w2s_fast.pipeline.artifacts import LOG, MODEL, SWEEP
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.stages.build_model import head_model, new_model
from w2s_fast.pipeline.stages.predict import predict_test
from w2s_fast.pipeline.stages.training_set import (
    TrainingSet,
    load_training_set,
    max_length,
    model_rows,
    shared_holdout,
)
from w2s_fast.store import StageBuild
from w2s_fast.training.deepspeed.partition import gather_in_forward
from w2s_fast.training.weight_path import WeightPath


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A model whose weights are replaced, and the rows that judge them."""

    ctx: Context
    model: Any
    tokenizer: Any
    held_out: TrainingSet | None

    def predict(self, rows: Any) -> Any:
        """Return the predictions of encoded rows."""
        ctx = self.ctx
        return ctx.kind.predict(
            self.model, self.tokenizer, rows, max_length(ctx), ctx.cfg.task.answer_tokens
        )

    def rows(self, split: str, items: Any) -> Any:
        """Return items of a split as the model reads them."""
        return model_rows(self.ctx, self.tokenizer, items, split)

    def agreement(self, rows: Any) -> float:
        """Return the share of held-out rows, encoded, whose class is that of the weak label."""
        assert self.held_out is not None
        predicted = self.predict(rows).argmax(1)
        return float((predicted == self.held_out.weak_labels.argmax(1)).mean())


def merge(ctx: Context, build: StageBuild) -> None:
    """Make the student of the weights of its inputs, and predict the test items."""
    candidate = _candidate(ctx)
    record = _interpolate(candidate, build) if _how(ctx) == "interpolation" else _soup(candidate)
    save_weights(candidate.model, build.path / MODEL, ctx.world)
    predict_test(ctx, build, candidate.model, candidate.tokenizer)
    first = json.loads((ctx.input(trained_inputs_of(ctx.job.inputs)[0]) / LOG).read_bytes())
    log = {k: v for k, v in first.items() if k not in ("truncated_prompts", "seconds")}
    log["merge"] = record | ({"before": first["merge"]} if "merge" in first else {})
    text = json.dumps(log) + "\n"
    ctx.write(lambda: (build.path / LOG).write_text(text, encoding="utf-8"))


def _how(ctx: Context) -> str:
    return str(ctx.job.setting("merge"))


def _candidate(ctx: Context) -> _Candidate:
    """Return the untrained model, ready to predict, and the rows that no student has learned."""
    role = ctx.job.setting("role")
    model: Any
    if ctx.job.setting("freeze"):
        model, tokenizer = head_model(ctx)
    else:
        model, tokenizer = new_model(ctx, role)
        gather_in_forward(model, train_of(ctx.cfg, role), model_of(ctx.cfg, role).dtype)
    held_out = None
    if ctx.job.setting("holdout"):
        training_set = load_training_set(ctx)
        held_out = training_set.take(np.flatnonzero(shared_holdout(ctx, training_set)))
    return _Candidate(ctx, model, tokenizer, held_out)


def _soup(candidate: _Candidate) -> dict[str, Any]:
    """Load the mean of all students, or of those that the greedy rule takes."""
    ctx = candidate.ctx
    states = [read_tensors(ctx.input(n) / MODEL) for n in trained_inputs_of(ctx.job.inputs)]
    layers = lora_layers(candidate.model)

    def load(members: tuple[int, ...]) -> None:
        soup = Soup([states[i] for i in members], lora=layers)
        load_module(candidate.model, soup, ctx.world)

    everyone = tuple(range(len(states)))
    if candidate.held_out is None:
        load(everyone)
        return {"how": _how(ctx), "members": len(states), "chosen": list(everyone)}
    rows = candidate.rows("transfer", candidate.held_out.items)

    def score(members: tuple[int, ...]) -> float:
        load(members)
        return candidate.agreement(rows)

    alone = [score((i,)) for i in everyone]
    chosen = greedy_members(alone, score)
    agreement = score(chosen)
    return {
        "how": _how(ctx), "members": len(states), "chosen": list(chosen),
        "member_agreement": alone, "agreement": agreement,
    }  # fmt: skip


def _interpolate(candidate: _Candidate, build: StageBuild) -> dict[str, Any]:
    """Predict held-out rows and test items at every coefficient, and load the best."""
    ctx = candidate.ctx
    assert candidate.held_out is not None
    (name,) = trained_inputs_of(ctx.job.inputs)
    path = WeightPath(candidate.model, read_tensors(ctx.input(name) / MODEL), ctx.world)
    held_out = candidate.rows("transfer", candidate.held_out.items)
    test = candidate.rows("test", ctx.inputs("test"))
    alphas = np.linspace(0, 1, ctx.job.setting("points")).tolist()
    agreement, predictions = [], []
    for i, alpha in enumerate(alphas):
        path.move(alpha)
        agreement.append(candidate.agreement(held_out))
        predictions.append(candidate.predict(test))
        ctx.progress(i + 1, len(alphas), 0.0)
    best = int(np.argmax(agreement))
    path.move(alphas[best])
    ctx.write(lambda: np.save(build.path / SWEEP, np.stack(predictions), allow_pickle=False))
    return {
        "how": _how(ctx), "alphas": alphas, "agreement": agreement, "alpha": alphas[best],
        "held_out": len(candidate.held_out.items),
    }  # fmt: skip
