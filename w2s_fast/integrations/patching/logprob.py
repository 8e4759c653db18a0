"""Log-probabilities of answers from a patched model, for losses of pairs or of policies.

B sequences, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.adapters import owner
from w2s_fast.integrations.patching.form import Form
from w2s_fast.integrations.patching.forward import (
    batch_size,
    config_tells_form,
    outside,
    refuse_logits,
)
from w2s_fast.integrations.patching.heads import through
from w2s_fast.integrations.patching.lazy_logits import LazyLogits
from w2s_fast.integrations.patching.own_forward import own_forward, without_logits
from w2s_fast.integrations.patching.shift import Aligned, refuse_unshifted
from w2s_fast.integrations.patching.state import State
from w2s_fast.integrations.patching.values import read_targets
from w2s_fast.ops.fused_linear.logprob import IGNORE, linear_logprob
from w2s_fast.ops.lazy_logits import Projected, logit_form

_BESIDE = ("shift_labels", "ignore_index")


def summed_logprob(lm: Any, given: dict[str, Any]) -> Tensor:
    """(B,) log-probabilities of the labelled tokens of each sequence, summed; fp32.

    What ``model(input_ids=..., labels=..., return_logprob=True)`` gives. ``labels`` (B, T) are -100
    where nothing counts and are shifted as always; only labelled positions reach the head.

    Raises:
        W2SError: without labels, with labels of another shape, dtype or type, beside what would
            not count (weak columns, ``shift_labels``, ``ignore_index``), and for a model whose own
            loss does not shift labels by one token.
    """
    refuse_logits(given)
    state: State = lm._w2s_fast
    _refuse_beside(given)
    refuse_unshifted(lm, state)
    state.loss_computed = True
    labels = given.pop("labels", None)
    for name in ("num_items_in_batch", "return_dict"):
        given.pop(name, None)
    if labels is None:
        raise W2SError("return_logprob came without labels; give the tokens of the answers, (B, T)")
    size = batch_size({"labels": labels, **given}, {})
    device = labels.device if isinstance(labels, Tensor) else torch.device("cpu")
    labels = read_targets({"labels": labels}, size, device)["labels"]
    hidden, form = _hidden(lm, state, given)
    labels = labels.to(hidden.device)
    if labels.shape != hidden.shape[:2]:
        raise W2SError(
            f"labels has shape {tuple(labels.shape)}; expected {tuple(hidden.shape[:2])} to fit "
            "the batch"
        )
    tokens = labels[:, 1:]
    # Compiled code must not wait to learn which positions count; it takes all of them.
    compiling = torch.compiler.is_compiling()
    rows = None if compiling else (tokens != IGNORE).flatten().nonzero()[:, 0]
    project = state.project(Projected, form)

    def then(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = project(hidden, weight, bias)
        scale: dict[str, Any] = {"softcap": x.softcap, "memory_mib": x.memory_mib}
        logp: Any = linear_logprob(x.hidden, x.weight, tokens, positions=rows, bias=x.bias, **scale)
        return logp

    summed: Tensor = through(lm.get_output_embeddings(), hidden[:, :-1], then)
    return summed


def _hidden(lm: Any, state: State, given: dict[str, Any]) -> tuple[Tensor, Form]:
    """Hidden states (B, T, D) that reach the head, and what happens to its output.

    Raises:
        W2SError: if the logits of the model are anything else.
    """
    if not torch.compiler.is_compiling():
        return _own_hidden(lm, state, given)
    if not state.plain or not state.shifts or not config_tells_form(lm):
        return outside(_own_hidden)(lm, state, given)
    body = lm.base_model(**given, return_dict=True)
    return body.last_hidden_state, Form(*logit_form(lm.config))


def _own_hidden(lm: Any, state: State, given: dict[str, Any]) -> tuple[Tensor, Form]:
    """What the head gets, and what happens to its output, in the model's own forward."""
    if state.shifts is None:
        logits = _first_logits(lm, state, given)
    else:
        with without_logits(lm, state.places, _no_loss):
            logits = own_forward(lm, given).logits
    if not isinstance(logits, LazyLogits) or logits.hidden.dim() != 3 or logits.moved():
        raise W2SError(
            f"the logits of {type(lm).__name__} are not its head on hidden states (B, T, D); "
            "return_logprob cannot be computed, use its own forward"
        )
    return logits.hidden, logits.form()


def _first_logits(lm: Any, state: State, given: dict[str, Any]) -> Any:
    """Logits of the first forward, which gets labels to see what the model's loss makes of them.

    Raises:
        W2SError: if it does not shift them by one token.
    """
    seen = Aligned(batch_size(given, {}), int(owner(lm.get_output_embeddings()).out_features))
    with without_logits(lm, state.places, seen.cross_entropy):
        logits = own_forward(lm, {**given, "labels": seen.labels.to(lm.device)}).logits
    state.shifts = bool(seen.shifts)
    refuse_unshifted(lm, state)
    return logits


def _refuse_beside(given: dict[str, Any]) -> None:
    """Raise ``W2SError`` for what says which tokens count, or how much, and would be left out."""
    for name in [n for n in given if n.startswith("weak_") or n in _BESIDE]:
        if given.pop(name) is not None:
            raise W2SError(
                f"return_logprob came with {name}, which it does not use; expected labels alone, "
                f"-100 where nothing counts: leave {name} out"
            )


def _no_loss(*args: Any) -> Tensor:
    raise W2SError(
        "return_logprob came to a model that computes a loss without labels; leave it out"
    )
