"""Checks of models, losses and trainers that need no tensor values."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.heads import check_head, origin_module
from w2s_fast.integrations.patching.state import UncomputedLogits
from w2s_fast.losses import Loss
from w2s_fast.losses.hidden_teacher import HiddenTeacher
from w2s_fast.ops.targets import SparseTargets


def transformers_model(model: Any) -> Any:
    """Return the transformers model of a model or peft model.

    Raises:
        W2SError: if it is neither.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) and hasattr(model, "peft_config"):
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise W2SError(
            f"model is a {type(model).__name__}; expected a causal LM of transformers, or a peft "
            "model around one (patch it before DDP, FSDP, DeepSpeed or torch.compile)"
        )
    return model


def check_model(lm: Any) -> None:
    """Raise ``W2SError`` for a model that is patched already, or is not a backbone and a head."""
    name = type(lm).__name__
    if "_w2s_fast" in lm.__dict__:
        raise W2SError(f"{name} is patched already; unpatch(model) first")
    if "forward" in lm.__dict__:
        raise W2SError(
            f"the forward of this {name} was replaced by {origin_module(lm.forward)}; load the "
            "model without that (Liger's patch, accelerate's hooks of device_map or prepare()), or "
            "patch it first (TRL's trainers)"
        )
    defining = next(c for c in type(lm).__mro__ if "forward" in c.__dict__)
    module = _defining_module(defining.__dict__["forward"])
    if module != defining.__module__ and module.partition(".")[0] not in ("transformers", "torch"):
        raise W2SError(
            f"the forward of the class {defining.__name__} was replaced by {module}; start a "
            "process without that patch"
        )
    head = output_embeddings(lm)
    if head is None and lm.base_model is lm:
        raise W2SError(
            f"{name} is not a backbone and a head; expected a causal LM such as LlamaForCausalLM"
        )
    check_head(name, head)


def output_embeddings(lm: Any) -> Any:
    """Return the head of a model; None if it has or reports none."""
    try:
        return lm.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _defining_module(forward: Any) -> str:
    """Return the module that defines a function, below its decorators."""
    return str(getattr(inspect.unwrap(forward), "__module__", "") or "")


def supported_kinds(loss: Loss) -> tuple[str, ...]:
    """Return the kinds of targets that a loss takes without logits, by trying three rows.

    Raises:
        W2SError: if there are none.
    """
    if isinstance(loss, HiddenTeacher):
        return ("states",)
    logits = UncomputedLogits(torch.ones(3, 2), torch.ones(4, 2))
    ids = torch.zeros(3, 1, dtype=torch.int64)
    tried = {
        "hard": ids[:, 0],
        "dense": torch.full((3, 4), 0.25),
        "sparse": SparseTargets(ids, torch.ones(3, 1)),
    }
    kinds = []
    for kind, weak in tried.items():
        try:
            loss(logits, weak, weight=torch.ones(3), step=0)  # type: ignore[arg-type]
            kinds.append(kind)
        except (W2SError, AttributeError, TypeError):
            continue
    if not kinds:
        raise W2SError(
            f"{type(loss).__name__} needs logits; expected a loss that is fused with the head, "
            "such as xent, logconf, smoothing, focal or window"
        )
    return tuple(kinds)


def check_no_predictions(labelled: bool) -> None:
    """Raise ``W2SError`` if transformers' Trainer is about to read logits of this forward.

    The Trainer requests loss and logits in one call, and only the frame of its ``prediction_step``
    says which of them it keeps. Without this check the metrics function of the user would get an
    empty tuple in place of logits.

    Args:
        labelled: whether the rows have labels, or weak columns alone.
    """
    if torch.compiler.is_compiling():
        return
    step = _prediction_step()
    if step is None or step.get("prediction_loss_only"):
        return
    if "logits" in (step.get("ignore_keys") or ()):
        return
    rows = "rows with labels" if labelled else "rows with weak columns"
    raise W2SError(
        f"metrics and predict() read logits, and a patched model makes none for {rows}; "
        "unpatch(model) before that, leave labels and weak columns out of the rows, or, where "
        "metrics read no logits, evaluate(ignore_keys=['logits', 'past_key_values'])"
    )


def _prediction_step() -> dict[str, Any] | None:
    """Return the local variables of the Trainer's ``prediction_step`` that led to this call."""
    frame = sys._getframe(1)
    while frame is not None:
        if (
            frame.f_code.co_name == "prediction_step"
            and frame.f_globals.get("__name__") == "transformers.trainer"
        ):
            return frame.f_locals
        frame = frame.f_back  # type: ignore[assignment]
    return None
