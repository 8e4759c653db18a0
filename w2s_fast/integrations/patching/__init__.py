"""Patch a transformers language model so that its forward returns a fused weak-to-strong loss.

``patch`` changes one model instance. Its new forward runs the model's own forward and computes the
fused loss where that takes the cross-entropy of logits; logits are never stored. Without targets it
is the model's own forward. The head computes inside its own module call, so libraries that shard
its weight (DDP, FSDP2, ZeRO-3) gather it and reduce its gradient.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.checks import check_model, supported_kinds, transformers_model
from w2s_fast.integrations.patching.columns import COLUMNS, pop_columns
from w2s_fast.integrations.patching.forward import forward_with_loss, not_compiled
from w2s_fast.integrations.patching.heads import install_head, origin_module, restore_heads
from w2s_fast.integrations.patching.logprob import summed_logprob
from w2s_fast.integrations.patching.progress import patched_models, progress_callback, set_progress
from w2s_fast.integrations.patching.shift import detect_shift, verify_first_batch
from w2s_fast.integrations.patching.state import State
from w2s_fast.integrations.patching.verify import verify_now
from w2s_fast.losses import Loss, make_loss

__all__ = ["patch", "progress_callback", "set_progress", "unpatch"]


def patch(model: Any, *, loss: str | Loss = "xent", memory_mib: float | None = None) -> Any:
    """Make a causal LM of transformers return its loss without (B, T, V) logits.

    A forward with ``labels`` or weak columns (B sequences, T tokens, V vocabulary) returns ``loss``
    and ``logits=None``. Columns are shifted as ``labels`` are:

    - ``weak_labels``: int64 (B, T), -100 without a label, or floating point (B, T, V);
    - ``weak_ids``, ``weak_probs`` (B, T, K) and optionally ``weak_rest`` (B, T), or all of them in
      ``weak_labels`` as ``SparseTargets``;
    - ``weak_states`` (B, T, S), with ``labels`` that mark positions, for the loss
      ``HiddenTeacher``: last hidden states of teachers beside the student's, so not shifted;
    - ``weak_weight``: (B,) or (B, T) row weights;
    - ``weak_frac``, ``weak_step``: progress of training, instead of ``set_progress``.

    The model's own forward and loss function run at every call; the fused loss replaces its head
    and ``F.cross_entropy``. Scales, soft-caps, router losses, keywords of the loss and later
    changes of the configuration therefore apply as before.

    With ``labels`` and weak columns, ``labels`` mark the positions that count and the weak columns
    are the targets. Without ``labels``, the positions with a weak label, an id or some mass count.
    The sum of row losses is divided by ``num_items_in_batch``, or else by the weights of the
    positions that count; if none counts, the loss and every gradient are 0. In eval mode the loss
    is plain cross-entropy. Forwards without targets, and generation, are unchanged. With ``labels``
    and ``return_logprob=True`` a forward returns the summed log-probability of each sequence's
    labelled tokens instead, (B,), for preference losses.

    Args:
        model: a transformers causal LM, or a peft model around one; changed in place. Patch it
            before it is passed to DDP, FSDP or DeepSpeed.
        loss: spec or object, see ``make_loss``.
        memory_mib: memory of a chunk of logits, in MiB; None: as for ``linear_cross_entropy``.

    Returns:
        ``model``.

    Raises:
        W2SError: if the model is patched already, by this function or another library, if it does
            more with its logits than scale, cap and shift them and take their cross-entropy, or if
            ``loss`` needs logits. Logits and loss are compared on twelve tokens, at the first
            forward with targets if weights are not loaded yet or token ids alone are not enough.
    """
    lm = transformers_model(model)
    check_model(lm)
    loss = make_loss(loss) if isinstance(loss, str) else loss
    forward = _patched_forward(type(lm).forward)
    state = State(forward, loss, supported_kinds(loss), memory_mib)
    install_head(lm.get_output_embeddings())
    lm._w2s_fast = state
    lm.forward = MethodType(forward, lm)
    try:
        verify_now(lm, state)
        if state.compared:
            detect_shift(lm, state)
    except BaseException:
        unpatch(lm)
        raise
    return model


def unpatch(model: Any) -> Any:
    """Restore the forward of a patched model.

    Returns:
        ``model``.

    Raises:
        W2SError: if it is not patched, or if its forward was wrapped after ``patch``.
    """
    for lm in patched_models(model):
        if getattr(lm.__dict__.get("forward"), "__func__", None) is not lm._w2s_fast.forward:
            raise W2SError(
                f"the forward of {type(lm).__name__} was wrapped by {origin_module(lm.forward)} "
                "after patch(); undo that first (accelerate: unwrap_model(model, "
                "keep_fp32_wrapper=False)), or save the weights and load them again (TRL)"
            )
        del lm.forward, lm._w2s_fast
        restore_heads(lm)
    return model


def _patched_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    """Make the forward of a patched model; its signature includes the weak columns.

    It is a plain function, bound to the model, so ``copy.deepcopy`` of a model binds it to the
    copy.
    """
    signature = inspect.signature(original)
    names = tuple(signature.parameters)[1:]

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        columns = pop_columns(kwargs)
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        logprob = inputs.pop("return_logprob", False)
        targets = (inputs.get("labels"), inputs.get("shift_labels"))
        if not logprob and not columns and all(t is None for t in targets):
            return original(self, *args, **kwargs)
        if not self._w2s_fast.compared:
            compiling = torch.compiler.is_compiling()
            verify = not_compiled(verify_first_batch) if compiling else verify_first_batch
            verify(self, self._w2s_fast, inputs, columns)
        if logprob:
            return summed_logprob(self, {**inputs, **columns})
        return forward_with_loss(self, inputs, columns)

    forward.__signature__ = _with_columns(signature)  # type: ignore[attr-defined]
    return forward


def _with_columns(signature: inspect.Signature) -> inspect.Signature:
    """Add the weak columns, so that trainers do not drop them from a data set as unused."""
    kind = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter(c, kind, default=None) for c in COLUMNS]
    original = list(signature.parameters.values())
    tail = [p for p in original if p.kind is inspect.Parameter.VAR_KEYWORD]
    head = [p for p in original if p not in tail]
    return signature.replace(parameters=[*head, *extra, *tail])
