"""What ``patch`` refuses, and the comparison of a patched model with what it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.forward import State, Unstored
from w2s_fast.integrations.patching.heads import owner, owners
from w2s_fast.losses import Loss
from w2s_fast.models.weights import is_partitioned, shape_of
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
    if getattr(lm.config, "is_encoder_decoder", False) or lm.base_model is lm:
        raise W2SError(
            f"{name} is not a body and a head; expected a causal LM such as LlamaForCausalLM"
        )
    _refuse_head(name, lm.get_output_embeddings())


def _refuse_head(name: str, head: Any) -> None:
    if head is None:
        raise W2SError(f"{name} has no language-model head; expected a causal LM")
    for own in owners(head):
        _refuse_owner(name, own)


def _refuse_owner(name: str, own: Any) -> None:
    weight = getattr(own, "weight", None)
    if not isinstance(own, torch.nn.Linear) or weight is None or not weight.is_floating_point():
        raise W2SError(f"the head of {name} is a {type(own).__name__}; expected nn.Linear")
    if "forward" in own.__dict__:
        raise W2SError(
            f"the forward of the head of this {name} was replaced by {origin(own.forward)}; load "
            "the model without that"
        )
    if shape_of(weight)[0] != own.out_features:
        raise W2SError(
            f"the head of {name} holds {tuple(weight.shape)} of {own.out_features} classes; patch "
            "before tensor parallelism or FSDP"
        )


def origin(forward: Any) -> str:
    """Who put a forward where it is; it may wear the name of what it wraps."""
    function = getattr(forward, "__func__", forward)
    function = getattr(function, "func", function)  # of functools.partial
    return str(getattr(function, "__globals__", {}).get("__name__") or "someone else")


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


@torch.no_grad()
def verify(lm: Any, original: Callable[..., Any], state: State) -> None:
    """Compare logits and loss of a patched model with its own, on twelve tokens.

    Weights that are partitioned or on the meta device cannot be computed with yet: nothing is
    compared.

    Raises:
        W2SError: if they differ.
    """
    weights = list(lm.parameters())
    if any(w.is_meta or is_partitioned(w) or hasattr(w, "device_mesh") for w in weights):
        return
    own = owner(lm.get_output_embeddings())
    v = int(own.out_features)
    ids = torch.arange(12, device=own.weight.device).view(2, 6) * max(v // 12, 1) % v
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[1, 4:], labels[0, :2] = 0, -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "use_cache": False}
    with _evaluating(lm):
        try:
            theirs = original(lm, **batch, return_dict=True)
        except Exception as e:
            told = " ".join(str(e).split())[:300]
            raise W2SError(f"the forward of {type(lm).__name__} fails: {told}") from e
        state.show = True
        logits = lm(**batch).logits.float()
        state.show = False
        ours = lm(**batch).loss
    expected = theirs.logits.float().flatten(0, 1)
    room = 64 * torch.finfo(own.weight.dtype).eps * expected.abs().max().clamp_min(1)
    _same(lm, "logits", expected, logits, room, "its head on the last hidden states of its body")
    _same(lm, "loss", theirs.loss, ours, room, "the cross-entropy of its logits (a router's loss?)")


def _same(lm: Any, what: str, theirs: Any, ours: Tensor, room: Tensor, found: str) -> None:
    if (
        not isinstance(theirs, Tensor)
        or theirs.shape != ours.shape
        or not (theirs - ours).abs().max() <= room
    ):
        raise W2SError(
            f"the {what} of {type(lm).__name__} is not {found}; it cannot be patched, use its own "
            "forward"
        )


@contextmanager
def _evaluating(lm: Any) -> Iterator[None]:
    """Eval mode, every module back as it was afterwards."""
    training = [m for m in lm.modules() if m.training]
    lm.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
