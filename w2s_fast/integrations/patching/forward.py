"""Forward of a patched model: its own, with the loss computed from hidden states and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.adapters import weight_owner
from w2s_fast.integrations.patching.checks import check_no_predictions
from w2s_fast.integrations.patching.column_types import read_targets
from w2s_fast.integrations.patching.columns import read_rows
from w2s_fast.integrations.patching.lazy_logits import LazyLogits
from w2s_fast.integrations.patching.logit_transform import LogitTransform
from w2s_fast.integrations.patching.loss_call import LossCall
from w2s_fast.integrations.patching.own_forward import own_forward, takes, without_logits
from w2s_fast.integrations.patching.schedule import pop_progress
from w2s_fast.integrations.patching.state import State
from w2s_fast.ops.lazy_logits import logit_form


def forward_with_loss(lm: Any, inputs: dict[str, Any], columns: dict[str, Any]) -> Any:
    """Return the model's own output with the loss and without logits.

    Args:
        lm: a patched model.
        inputs: arguments of its own forward, by name.
        columns: the weak columns.

    Raises:
        W2SError: if the targets do not fit, or the model needs its logits for more than a loss.
    """
    state: State = lm._w2s_fast
    state.loss_computed = True
    check_no_logits(inputs)
    _read_progress(lm, state, columns)
    _read_targets(lm, inputs, columns)
    if not lm.training:
        labels = (inputs.get("labels"), inputs.get("shift_labels"))
        check_no_predictions(labelled=any(x is not None for x in labels))
    as_dict = inputs.pop("return_dict", None)
    inputs = {k: v for k, v in inputs.items() if v is not None}
    as_dict = getattr(lm.config, "return_dict", True) if as_dict is None else as_dict
    if not torch.compiler.is_compiling():
        out = _own_forward_loss(lm, inputs, columns)
    elif state.plain and is_still_plain(lm, state, inputs):
        out = _backbone_loss(lm, inputs, columns)
    else:
        out = not_compiled(_own_forward_loss)(lm, inputs, columns)
    return out if as_dict else out.to_tuple()


def _own_forward_loss(lm: Any, inputs: dict[str, Any], columns: dict[str, Any]) -> Any:
    """Run the model's own forward and loss function with head and cross-entropy fused."""
    if columns and getattr(lm.config, "is_encoder_decoder", False):
        raise W2SError(
            f"{type(lm).__name__} is an encoder-decoder and makes decoder inputs from labels; "
            f"expected labels alone, not {', '.join(columns)}"
        )
    n_items = inputs.get("num_items_in_batch")
    if n_items is not None:
        if not takes(type(lm).forward, "num_items_in_batch"):
            raise W2SError(
                f"the forward of {type(lm).__name__} takes no num_items_in_batch: its loss is a "
                "mean; leave the argument out"
            )
        if divides_by_items(lm.loss_function):
            inputs["num_items_in_batch"] = 1  # the row weights are divided by it instead
        else:
            n_items = None
    labels, shifted = inputs.get("labels"), inputs.get("shift_labels") is not None
    call = LossCall(
        lm, lm._w2s_fast, inputs.get("shift_labels", labels), shifted, columns, n_items,
        size=batch_size(inputs, columns),
    )  # fmt: skip
    if call.labels is None:
        inputs["labels"] = _every_position(call)
    elif labels is None:
        inputs["labels"] = call.labels  # models compute a loss only if it is present
    return run_forward(lm, inputs, call)


def run_forward(lm: Any, inputs: dict[str, Any], call: LossCall) -> Any:
    """Run a model's own forward around ``call``; remove lazy logits from its output.

    Raises:
        W2SError: if the loss did not come from the head.
    """
    with without_logits(lm, lm._w2s_fast.places, call.cross_entropy) as head:
        call.head = head
        out = own_forward(lm, inputs)
    loss = getattr(out, "loss", None)
    if not call.calls or not isinstance(loss, Tensor):
        raise W2SError(
            f"the loss of {type(lm).__name__} does not come from its head's logits by "
            "F.cross_entropy; it cannot be patched, use its own forward"
        )
    call.compare_output(out)
    fields = {k: v for k, v in out.items() if v is not None and not isinstance(v, LazyLogits)}
    return type(out)(**fields)


def divides_by_items(loss_function: Any) -> bool:
    """Return whether a loss function is transformers' own, which divides sums by the item count."""
    return str(getattr(loss_function, "__module__", "")).startswith("transformers.loss")


def batch_size(inputs: dict[str, Any], columns: dict[str, Any]) -> tuple[int, int]:
    """Return (B, T) of a batch, from its targets if the model gets no ids."""
    candidates = (inputs.get(name) for name in ("input_ids", "inputs_embeds", "labels"))
    for t in (*candidates, *columns.values()):
        if isinstance(t, Tensor) and t.dim() > 1:
            return int(t.shape[0]), int(t.shape[1])
    return 0, 0


def _every_position(call: LossCall) -> Tensor:
    """Return labels that mark every position; the weak columns decide which ones count."""
    device = next(iter(call.columns.values())).device
    return torch.zeros(call.size, dtype=torch.int64, device=device)


# Fields that some models copy at construction, after which the configuration has no effect.
_TRANSFORM_FIELDS = (
    "final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier",
)  # fmt: skip


_TRANSFORM_WORDS = ("logit", "softcap", "multiplier", "scale")


def logit_fields(lm: Any) -> tuple[tuple[str, Any], ...]:
    """Return fields that may define the transform of logits, except those read at every call."""
    text = lm.config.get_text_config(decoder=True)
    read = _TRANSFORM_FIELDS if text is lm.config else ()
    return tuple(
        (name, value)
        for name, value in vars(text).items()
        if name not in read
        and any(word in name for word in _TRANSFORM_WORDS)
        and isinstance(value, int | float | None)
    )


def config_defines_transform(lm: Any) -> bool:
    """Return whether scale and soft-cap of the logits are still those of the configuration."""
    text = lm.config.get_text_config(decoder=True)
    if not all(getattr(text, n, None) == value for n, value in lm._w2s_fast.logit_fields):
        return False
    return all(
        getattr(lm, n, None) in (None, getattr(lm.config, n, None)) for n in _TRANSFORM_FIELDS
    )


def is_still_plain(lm: Any, state: State, inputs: dict[str, Any]) -> bool:
    """Return whether nothing changed since the comparison set ``State.plain``."""
    text = lm.config.get_text_config(decoder=True)
    router = inputs.get("output_router_logits", getattr(text, "output_router_logits", False))
    if router or not config_defines_transform(lm):
        return False
    return lm.loss_function is state.loss_function and "ignore_index" not in inputs


def _backbone_loss(lm: Any, inputs: dict[str, Any], columns: dict[str, Any]) -> Any:
    """Compute the loss from backbone and head; compiled code skips the model's own forward."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    labels, shift_labels, n_items = (
        inputs.pop(k, None) for k in ("labels", "shift_labels", "num_items_in_batch")
    )
    backbone = lm.base_model(**inputs, return_dict=True)
    head = lm.get_output_embeddings()
    hidden = backbone.last_hidden_state
    size = (hidden.shape[0], hidden.shape[1])
    vocabulary = int(weight_owner(head).out_features)
    rows = read_rows(labels, shift_labels, columns, size, vocabulary, hidden, n_items)
    return CausalLMOutputWithPast(
        loss=lm._w2s_fast.loss_sum(lm, rows, head, LogitTransform(*logit_form(lm.config))),
        past_key_values=getattr(backbone, "past_key_values", None),
        hidden_states=getattr(backbone, "hidden_states", None),
        attentions=getattr(backbone, "attentions", None),
    )


def not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Exclude a function from compilation; called lazily, because the compiler loads slowly."""
    return torch.compiler.disable(function)


def _read_progress(lm: Any, state: State, columns: dict[str, Any]) -> None:
    """Read the columns that say where in training this step is.

    Raises:
        W2SError: if the loss has a schedule and its progress was never set.
    """
    progress = pop_progress(columns)
    if progress is not None:
        state.set_progress(*progress)
    if lm.training and state.scheduled and not state.progress_known:
        raise W2SError(
            f"{type(state.loss).__name__} changes over training and its progress is not set; call "
            "w2s_fast.integrations.patching.set_progress(model, step_frac) before a step, give the "
            "Trainer progress_callback(model), or send a weak_frac column"
        )


def _read_targets(lm: Any, inputs: dict[str, Any], columns: dict[str, Any]) -> None:
    """Replace labels and weak columns by tensors of checked types.

    Raises:
        W2SError: for values that are not tensors or have the wrong dtype.
    """
    size = batch_size(inputs, columns)
    for values, names in ((inputs, ("labels", "shift_labels")), (columns, tuple(columns))):
        targets = {n: values[n] for n in names if values.get(n) is not None}
        for name, value in targets.items():
            device = value.device if isinstance(value, Tensor) else torch.device("cpu")
            values.update(read_targets({name: value}, size, device))


def check_no_logits(inputs: dict[str, Any]) -> None:
    """Raise ``W2SError`` if a forward with targets requests logits."""
    keep = inputs.pop("logits_to_keep", None)
    for name, requested in (
        ("logits_to_keep", isinstance(keep, Tensor) or bool(keep)),
        ("output_logits", bool(inputs.pop("output_logits", None))),
    ):
        if requested:
            raise W2SError(
                f"{name} requests logits, and a patched model makes none with a loss; leave the "
                "targets out of this forward, or unpatch the model"
            )
