"""Check, before anything is computed, trainings that read the input of a classifier's head."""

from __future__ import annotations

from collections.abc import Iterable

from w2s_fast.config import RunConfig, model_of, naming_block, roles, train_of
from w2s_fast.errors import W2SError
from w2s_fast.methods import Node
from w2s_fast.models import ModelConfig
from w2s_fast.training.step_targets import make_step_targets


def check_trainings(cfg: RunConfig, kind: str, nodes: Iterable[Node]) -> None:
    """Check that models have the head that settings of their training, or methods, work on.

    Raises:
        W2SError: One has none: a bag of words, a policy, or a model that generates.
    """
    for role in roles(cfg):
        sigma = train_of(cfg, role).nested_dropout
        with naming_block("weak_train" if role == "weak" else "student_train"):
            if sigma:
                _check_head(model_of(cfg, role), kind, f"nested_dropout={sigma}")
    for node in nodes:
        settings = dict(node.settings)
        if "nested_dropout" in settings:
            purpose = f"a method with nested_dropout={settings['nested_dropout']}"
            _check_head(model_of(cfg, settings["role"]), kind, purpose)
        if "step_targets" in settings:
            _check_step_targets(model_of(cfg, settings["role"]), kind, settings["step_targets"])
            anchor = settings.get("anchor") or train_of(cfg, settings["role"]).anchor
            _check_twins(settings["step_targets"], anchor)


def _check_step_targets(model: ModelConfig, kind: str, spec: str) -> None:
    targets = make_step_targets(spec)
    if model.preference:
        raise W2SError(
            f"a method makes targets in every step ({type(targets).__name__}), and the student is "
            f"a policy (preference={model.preference!r}), whose pairs have no class; set "
            "student.preference='' for a reward model, or drop the method"
        )
    if contrast := getattr(targets, "contrast", 0.0):
        _check_head(model, kind, f"a method with contrast={contrast}")


def _check_twins(spec: str, anchor: float) -> None:
    if anchor and make_step_targets(spec).branches > 1:
        raise W2SError(
            f"anchor={anchor:g} keeps the states of one student near, and a method trains two "
            f"({spec}); expected anchor=0, or another method"
        )


def _check_head(model: ModelConfig, kind: str, purpose: str) -> None:
    if kind == "generation" or model.source == "bow" or model.preference:
        what = f"preference={model.preference!r}" if model.preference else f"{model.source!r}"
        raise W2SError(
            f"{purpose} works on the input of a linear head, which a model of source {what} for a "
            f"task of kind {kind!r} lacks; use a classifier on hidden states, or leave it out"
        )
