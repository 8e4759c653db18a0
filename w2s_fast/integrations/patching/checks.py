"""What ``patch`` refuses before it looks at any value."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.heads import origin, refuse_head
from w2s_fast.integrations.patching.state import Unstored
from w2s_fast.losses import Loss
from w2s_fast.ops.targets import SparseTargets


def transformers_model(model: Any) -> Any:
    """The transformers model that a user means, a peft model's for instance."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) and hasattr(model, "peft_config"):
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise W2SError(
            f"model is a {type(model).__name__}; expected a causal LM of transformers, or a peft "
            "model around one (patch before it goes to DDP, FSDP, DeepSpeed or torch.compile)"
        )
    return model


def refuse(lm: Any) -> None:
    """Raise ``W2SError`` for a model that is patched already, or that no head and body make up."""
    name = type(lm).__name__
    if "_w2s_fast" in lm.__dict__:
        raise W2SError(f"{name} is patched already; unpatch(model) first")
    if "forward" in lm.__dict__:
        raise W2SError(
            f"the forward of this {name} was replaced by {origin(lm.forward)}; load the model "
            "without that (Liger's patch, accelerate's hooks of device_map or prepare()), or patch "
            "it first (TRL's trainers)"
        )
    home = next(c for c in type(lm).__mro__ if "forward" in c.__dict__)
    by = _module(home.__dict__["forward"])
    if by != home.__module__ and by.partition(".")[0] not in ("transformers", "torch"):
        raise W2SError(
            f"the forward of the class {home.__name__} was replaced by {by}; start a process "
            "without that patch"
        )
    head = output_embeddings(lm)
    if head is None and lm.base_model is lm:
        raise W2SError(
            f"{name} is not a body and a head; expected a causal LM such as LlamaForCausalLM"
        )
    refuse_head(name, head)


def output_embeddings(lm: Any) -> Any:
    """The head of a model, None where it has none or does not say which."""
    try:
        return lm.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _module(forward: Any) -> str:
    """The module that a function comes from, behind its decorators."""
    return str(getattr(inspect.unwrap(forward), "__module__", "") or "")


def fused_kinds(loss: Loss) -> tuple[str, ...]:
    """Kinds of targets that a loss takes without asking for logits; three rows are tried.

    Raises:
        W2SError: if there are none.
    """
    logits = Unstored(torch.ones(3, 2), torch.ones(4, 2))
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
