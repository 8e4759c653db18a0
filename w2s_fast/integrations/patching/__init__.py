"""Two lines in anyone's trainer: a language model of transformers that never stores its logits.

``patch`` gives one model, and no other, a forward that runs the model's own and computes the fused
loss where that would take the cross-entropy of logits; without targets it is the model's own
forward. The head computes inside its own call, so whoever shards its weight (DDP, FSDP2, ZeRO-3)
sees it used.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.checks import fused_kinds, refuse, transformers_model
from w2s_fast.integrations.patching.columns import COLUMNS, take_columns
from w2s_fast.integrations.patching.forward import loss_output, outside
from w2s_fast.integrations.patching.heads import hand_back, origin, take_over
from w2s_fast.integrations.patching.logprob import summed_logprob
from w2s_fast.integrations.patching.progress import patched_models, progress_callback, set_progress
from w2s_fast.integrations.patching.shift import compare_first_and_shift, note_shift
from w2s_fast.integrations.patching.state import State
from w2s_fast.integrations.patching.verify import compare_now
from w2s_fast.losses import Loss, make_loss
from w2s_fast.ops.chunking import DEFAULT_MEMORY_MIB

__all__ = ["patch", "progress_callback", "set_progress", "unpatch"]


def patch(model: Any, *, loss: str | Loss = "xent", memory_mib: float = DEFAULT_MEMORY_MIB) -> Any:
    """Let a causal LM of transformers return its loss without ever making (B, T, V) logits.

    A forward with ``labels`` or weak columns (B sequences, T tokens, V vocabulary) gives ``loss``
    and ``logits=None``. All columns are shifted as ``labels`` are:

    - ``weak_labels``: int64 (B, T), -100 where none, or floating point (B, T, V);
    - ``weak_ids``, ``weak_probs`` (B, T, K) and maybe ``weak_rest`` (B, T), or all of them in
      ``weak_labels`` as ``SparseTargets``;
    - ``weak_weight``: (B,) or (B, T) row weights;
    - ``weak_frac``, ``weak_step``: where in training this is, instead of ``set_progress``.

    The model's own forward and its loss function run at every call; the fused loss takes the place
    of its head and of ``F.cross_entropy``. Scales, soft-caps, router losses, keywords of the loss
    and later changes of the configuration are therefore the model's own.

    With ``labels`` and weak columns, ``labels`` mark the positions that count and the weak columns
    say what is learned there. Without ``labels`` positions count that have a weak label, an id or
    some mass. The sum of row losses is divided by ``num_items_in_batch``, or else by the weights of
    the positions that count; where none counts the loss is 0 and so is every gradient. In eval mode
    the cross-entropy is plain. Forwards without targets, and generation, are the model's own.
    With ``labels`` and ``return_logprob=True`` a forward gives the summed log-probability of each
    sequence's labelled tokens instead, (B,): what losses of pairs are made of.

    Args:
        model: a transformers causal LM, or a peft model around one. Patch before it goes to DDP,
            FSDP or DeepSpeed. Changed in place.
        loss: spec or object, see ``make_loss``.
        memory_mib: what a chunk of logits may take.

    Returns:
        ``model``.

    Raises:
        W2SError: if the model is patched already, by us or someone else, if it does more with its
            logits than scale, cap and shift them and take their cross-entropy (found by comparing
            logits and loss on twelve tokens: at the first forward with targets, if weights are not
            here yet or ids alone are not enough), or if ``loss`` needs logits.
    """
    lm = transformers_model(model)
    refuse(lm)
    chosen = make_loss(loss) if isinstance(loss, str) else loss
    forward = _forward_like(type(lm).forward)
    state = State(forward, chosen, fused_kinds(chosen), memory_mib)
    take_over(lm.get_output_embeddings())
    lm._w2s_fast = state
    lm.forward = MethodType(forward, lm)
    try:
        compare_now(lm, state)
        if state.compared:
            note_shift(lm, state)
    except BaseException:
        unpatch(lm)
        raise
    return model


def unpatch(model: Any) -> Any:
    """Give a patched model its own forward back.

    Returns:
        ``model``.

    Raises:
        W2SError: if it is not patched, or if its forward was wrapped since.
    """
    for lm in patched_models(model):
        if getattr(lm.__dict__.get("forward"), "__func__", None) is not lm._w2s_fast.forward:
            raise W2SError(
                f"the forward of {type(lm).__name__} was wrapped by {origin(lm.forward)} after "
                "patch(); undo that first (accelerate: unwrap_model(model, "
                "keep_fp32_wrapper=False)), or save the weights and load them again (TRL)"
            )
        del lm.forward, lm._w2s_fast
        hand_back(lm)
    return model


def _forward_like(original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a patched model; its signature names the weak columns.

    It holds no model: bound to one, it moves to a copy of it with ``copy.deepcopy``.
    """
    signature = inspect.signature(original)
    names = tuple(signature.parameters)[1:]

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        columns = take_columns(kwargs)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        logprob = given.pop("return_logprob", False)
        targets = (given.get("labels"), given.get("shift_labels"))
        if not logprob and not columns and all(t is None for t in targets):
            return original(self, *args, **kwargs)
        if not self._w2s_fast.compared:
            compiling = torch.compiler.is_compiling()
            first = compare_first_and_shift
            compare = outside(first) if compiling else first
            compare(self, self._w2s_fast, given, columns)
        if logprob:
            return summed_logprob(self, {**given, **columns})
        return loss_output(self, given, columns)

    forward.__signature__ = _with_columns(signature)  # type: ignore[attr-defined]
    return forward


def _with_columns(signature: inspect.Signature) -> inspect.Signature:
    """So that trainers keep the columns of a data set that they would call unused."""
    kind = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter(c, kind, default=None) for c in COLUMNS]
    own = list(signature.parameters.values())
    tail = [p for p in own if p.kind is inspect.Parameter.VAR_KEYWORD]
    return signature.replace(parameters=[*(p for p in own if p not in tail), *extra, *tail])
