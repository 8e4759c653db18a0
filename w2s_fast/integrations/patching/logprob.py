"""Log-probabilities of sequences from a patched model, for preference or policy losses.

B sequences, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.adapters import weight_owner
from w2s_fast.integrations.patching.column_types import read_targets
from w2s_fast.integrations.patching.forward import (
    batch_size,
    check_no_logits,
    config_defines_transform,
    not_compiled,
)
from w2s_fast.integrations.patching.heads import call_head
from w2s_fast.integrations.patching.lazy_logits import LazyLogits
from w2s_fast.integrations.patching.logit_transform import LogitTransform
from w2s_fast.integrations.patching.own_forward import own_forward, without_logits
from w2s_fast.integrations.patching.shift import ShiftProbe, check_shifted
from w2s_fast.integrations.patching.state import State
from w2s_fast.ops.fused_linear.logprob import IGNORE, linear_logprob
from w2s_fast.ops.lazy_logits import Projected, logit_form

_UNUSED = ("shift_labels", "ignore_index")


def summed_logprob(lm: Any, inputs: dict[str, Any]) -> Tensor:
    """Sum the log-probabilities of the labelled tokens of each sequence.

    This is ``model(input_ids=..., labels=..., return_logprob=True)``. ``labels`` (B, T) are -100 at
    positions that do not count, and are shifted; only labelled positions reach the head.

    Raises:
        W2SError: without labels, with labels of another shape, dtype or type, with arguments that
            would be ignored (weak columns, ``shift_labels``, ``ignore_index``), and for a model
            whose own loss does not shift labels by one token.

    Returns:
        (B,) fp32.
    """
    check_no_logits(inputs)
    state: State = lm._w2s_fast
    _check_only_labels(inputs)
    check_shifted(lm, state)
    state.loss_computed = True
    labels = inputs.pop("labels", None)
    for name in ("num_items_in_batch", "return_dict"):
        inputs.pop(name, None)
    if labels is None:
        raise W2SError("return_logprob came without labels; pass the completion tokens, (B, T)")
    size = batch_size({"labels": labels, **inputs}, {})
    device = labels.device if isinstance(labels, Tensor) else torch.device("cpu")
    labels = read_targets({"labels": labels}, size, device)["labels"]
    hidden, transform = _hidden_states(lm, state, inputs)
    labels = labels.to(hidden.device)
    if labels.shape != hidden.shape[:2]:
        raise W2SError(
            f"labels has shape {tuple(labels.shape)}; expected {tuple(hidden.shape[:2])} to fit "
            "the batch"
        )
    tokens = labels[:, 1:]
    # Compiled code must not synchronise to find the labelled positions; it takes all of them.
    compiling = torch.compiler.is_compiling()
    rows = None if compiling else (tokens != IGNORE).flatten().nonzero()[:, 0]
    project = state.project(Projected, transform)

    def head_fn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = project(hidden, weight, bias)
        scale: dict[str, Any] = {"softcap": x.softcap, "memory_mib": x.memory_mib}
        logp: Any = linear_logprob(x.hidden, x.weight, tokens, positions=rows, bias=x.bias, **scale)
        return logp

    summed: Tensor = call_head(lm.get_output_embeddings(), hidden[:, :-1], head_fn)
    return summed


def _hidden_states(lm: Any, state: State, inputs: dict[str, Any]) -> tuple[Tensor, LogitTransform]:
    """Return the hidden states (B, T, D) that reach the head, and the transform of its output.

    Raises:
        W2SError: if the model's logits are not that transform.
    """
    if not torch.compiler.is_compiling():
        return _own_hidden(lm, state, inputs)
    if not state.plain or not state.shifts or not config_defines_transform(lm):
        return not_compiled(_own_hidden)(lm, state, inputs)
    backbone = lm.base_model(**inputs, return_dict=True)
    return backbone.last_hidden_state, LogitTransform(*logit_form(lm.config))


def _own_hidden(lm: Any, state: State, inputs: dict[str, Any]) -> tuple[Tensor, LogitTransform]:
    """Return both from the model's own forward."""
    if state.shifts is None:
        logits = _first_logits(lm, state, inputs)
    else:
        with without_logits(lm, state.places, _no_loss):
            logits = own_forward(lm, inputs).logits
    if not isinstance(logits, LazyLogits) or logits.hidden.dim() != 3 or logits.moved():
        raise W2SError(
            f"the logits of {type(lm).__name__} are not its head on hidden states (B, T, D); "
            "return_logprob cannot be computed, use its own forward"
        )
    return logits.hidden, logits.transform()


def _first_logits(lm: Any, state: State, inputs: dict[str, Any]) -> Any:
    """Run the first forward with labels, to detect how the model's loss shifts them.

    Raises:
        W2SError: if it does not shift them by one token.
    """
    width = int(weight_owner(lm.get_output_embeddings()).out_features)
    trial = ShiftProbe(batch_size(inputs, {}), width)
    with without_logits(lm, state.places, trial.cross_entropy):
        logits = own_forward(lm, {**inputs, "labels": trial.labels.to(lm.device)}).logits
    state.shifts = bool(trial.shifts)
    check_shifted(lm, state)
    return logits


def _check_only_labels(inputs: dict[str, Any]) -> None:
    """Raise ``W2SError`` for arguments about tokens or weights that would be ignored."""
    for name in [n for n in inputs if n.startswith("weak_") or n in _UNUSED]:
        if inputs.pop(name) is not None:
            raise W2SError(
                f"return_logprob came with {name}, which it does not use; expected labels alone, "
                f"-100 where nothing counts: leave {name} out"
            )


def _no_loss(*args: Any) -> Tensor:
    raise W2SError(
        "return_logprob came to a model that computes a loss without labels; leave it out"
    )
