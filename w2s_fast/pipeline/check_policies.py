"""Check, before anything is computed, models whose implicit rewards are their scores."""

from __future__ import annotations

from collections.abc import Iterable

from w2s_fast.config import RunConfig, model_of, roles
from w2s_fast.errors import W2SError
from w2s_fast.methods import Node
from w2s_fast.models import ModelConfig


def check_policy(model: ModelConfig, kind: str) -> None:
    """Check ``ModelConfig.preference`` against the model and the kind of the task.

    Raises:
        W2SError: The task has no pairs, the loss defines no reward of a single language model, or
            the model is none.
    """
    from w2s_fast.losses.preference import make_preference

    if not model.preference:
        return
    if kind != "preference":
        raise W2SError(
            f"preference is {model.preference!r}, and the task of kind {kind!r} has no pairs; "
            "leave it empty"
        )
    make_preference(model.preference)
    name = model.preference.split(":")[0]
    if name in ("kto", "bradley_terry"):
        raise W2SError(
            f"preference={model.preference!r} gives no reward of a single language model; expected "
            "dpo, dpo_norm, ipo, simpo, orpo, cpo or wspo"
        )
    if model.source == "bow" or model.freeze != "none":
        raise W2SError(
            f"preference={model.preference!r} at source={model.source!r}, freeze={model.freeze!r}: "
            "expected a language model and freeze='none'"
        )


def check_weak_policy(cfg: RunConfig, losses: Iterable[str]) -> None:
    """Check that a policy that learns the log-ratio of the weak model, by WSPO, has one to learn.

    Args:
        cfg: Configuration of the run.
        losses: Specs of the students' losses.

    Raises:
        W2SError: The weak model is no policy, the model that learns is not the student, or a loss
            would ignore the log-ratio.
    """
    from w2s_fast.losses.preference import make_preference

    specs = {role: model_of(cfg, role).preference for role in roles(cfg)}
    for role, spec in specs.items():
        if not spec or "target" not in make_preference(spec).needs:
            continue
        if role != "student" or not cfg.weak.preference:
            raise W2SError(
                f"{role}.preference={spec!r} learns how the weak model's log-probabilities have "
                "changed, which only a student can, of a weak model that is a policy; expected "
                f"weak.preference=dpo, for instance, and weak.preference={cfg.weak.preference!r}"
            )
        other = next((loss for loss in losses if loss.split(":")[0] != "xent"), None)
        if other is not None:
            raise W2SError(
                f"losses: {other!r} with student.preference={spec!r} would learn rewards and "
                "ignore the weak model's log-ratio; expected losses: [xent], which is the "
                "preference loss itself"
            )


def check_policy_methods(cfg: RunConfig, nodes: Iterable[Node]) -> None:
    """Check that no method needs the head of a policy.

    Raises:
        W2SError: One does.
    """
    for node in nodes:
        role = dict(node.settings).get("role")
        if role is None or not model_of(cfg, role).preference:
            continue
        if dict(node.settings).get("freeze"):
            raise W2SError(
                f"{role}.preference={model_of(cfg, role).preference!r}: a method trains the head "
                f"of a frozen model, and a policy has none; set {role}.preference='' for a reward "
                "model, or drop the method"
            )
