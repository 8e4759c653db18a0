"""The forward of a patched model: its own, with the loss computed from hidden states and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.adapters import owner
from w2s_fast.integrations.patching.columns import read_rows
from w2s_fast.integrations.patching.form import Form
from w2s_fast.integrations.patching.lazy_logits import LazyLogits
from w2s_fast.integrations.patching.loss_call import LossCall
from w2s_fast.integrations.patching.own_forward import own_forward, takes, without_logits
from w2s_fast.integrations.patching.predictions import refuse_predictions
from w2s_fast.integrations.patching.schedule import pop_progress
from w2s_fast.integrations.patching.state import State
from w2s_fast.integrations.patching.values import read_targets
from w2s_fast.ops.lazy_logits import logit_form


def loss_output(lm: Any, given: dict[str, Any], columns: dict[str, Any]) -> Any:
    """The model's own output with the loss and without logits.

    Args:
        lm: a patched model.
        given: arguments of its own forward, by name.
        columns: the weak columns.

    Raises:
        W2SError: if the targets do not fit, or the model needs its logits for more than a loss.
    """
    state: State = lm._w2s_fast
    state.loss_computed = True
    refuse_logits(given)
    _progress(lm, state, columns)
    _read_targets(lm, given, columns)
    if not lm.training:
        labels = (given.get("labels"), given.get("shift_labels"))
        refuse_predictions(labelled=any(x is not None for x in labels))
    as_dict = given.pop("return_dict", None)
    given = {k: v for k, v in given.items() if v is not None}
    as_dict = getattr(lm.config, "return_dict", True) if as_dict is None else as_dict
    if not torch.compiler.is_compiling():
        out = _own_loss(lm, given, columns)
    elif state.plain and is_plain(lm, state, given):
        out = _straight_loss(lm, given, columns)
    else:
        out = outside(_own_loss)(lm, given, columns)
    return out if as_dict else out.to_tuple()


def _own_loss(lm: Any, given: dict[str, Any], columns: dict[str, Any]) -> Any:
    """The model's own forward and loss function, with the head and cross-entropy fused."""
    if columns and getattr(lm.config, "is_encoder_decoder", False):
        raise W2SError(
            f"{type(lm).__name__} is an encoder-decoder and makes its decoder's inputs of labels; "
            f"expected labels alone, not {', '.join(columns)}"
        )
    n_items = given.get("num_items_in_batch")
    if n_items is not None:
        if not takes(type(lm).forward, "num_items_in_batch"):
            raise W2SError(
                f"the forward of {type(lm).__name__} takes no num_items_in_batch: its loss is a "
                "mean; leave the argument out"
            )
        if divides(lm.loss_function):
            given["num_items_in_batch"] = 1  # its part of the gradient's scale is in the rows
        else:
            n_items = None
    labels, shifted = given.get("labels"), given.get("shift_labels") is not None
    call = LossCall(
        lm, lm._w2s_fast, given.get("shift_labels", labels), shifted, columns, n_items,
        size=batch_size(given, columns),
    )  # fmt: skip
    if call.labels is None:
        given["labels"] = _every_position(call)
    elif labels is None:
        given["labels"] = call.labels  # its presence is what models look at
    return run(lm, given, call)


def run(lm: Any, given: dict[str, Any], call: LossCall) -> Any:
    """A model's own forward around ``call``; lazy logits are taken out of what it gives.

    Raises:
        W2SError: if its loss did not come from its head.
    """
    with without_logits(lm, lm._w2s_fast.places, call.cross_entropy) as head:
        call.head = head
        out = own_forward(lm, given)
    loss = getattr(out, "loss", None)
    if not call.calls or not isinstance(loss, Tensor):
        raise W2SError(
            f"the loss of {type(lm).__name__} does not come from its head's logits by "
            "F.cross_entropy; it cannot be patched, use its own forward"
        )
    call.compare_output(out)
    fields = {k: v for k, v in out.items() if v is not None and not isinstance(v, LazyLogits)}
    return type(out)(**fields)


def divides(loss_function: Any) -> bool:
    """Whether a loss function is one of transformers', which divide sums by the number of items."""
    return str(getattr(loss_function, "__module__", "")).startswith("transformers.loss")


def batch_size(given: dict[str, Any], columns: dict[str, Any]) -> tuple[int, int]:
    """(B, T) of a batch, that of its targets where the model gets no ids."""
    inputs = (given.get(name) for name in ("input_ids", "inputs_embeds", "labels"))
    for t in (*inputs, *columns.values()):
        if isinstance(t, Tensor) and t.dim() > 1:
            return int(t.shape[0]), int(t.shape[1])
    return 0, 0


def _every_position(call: LossCall) -> Tensor:
    """Labels that mark every position: the weak columns say which ones count."""
    device = next(iter(call.columns.values())).device
    return torch.zeros(call.size, dtype=torch.int64, device=device)


# Fields that some models copy when they are built, where the configuration no longer counts.
_FORM_FIELDS = (
    "final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier",
)  # fmt: skip


_FORM_WORDS = ("logit", "softcap", "multiplier", "scale")


def other_fields(lm: Any) -> tuple[tuple[str, Any], ...]:
    """Fields that a form of logits may be made of, but for those that are read at every call."""
    text = lm.config.get_text_config(decoder=True)
    read = _FORM_FIELDS if text is lm.config else ()
    return tuple(
        (name, value)
        for name, value in vars(text).items()
        if name not in read
        and any(word in name for word in _FORM_WORDS)
        and isinstance(value, int | float | None)
    )


def config_tells_form(lm: Any) -> bool:
    """Whether scale and soft-cap of the logits are still those of the configuration."""
    text = lm.config.get_text_config(decoder=True)
    if not all(getattr(text, n, None) == value for n, value in lm._w2s_fast.other_fields):
        return False
    return all(getattr(lm, n, None) in (None, getattr(lm.config, n, None)) for n in _FORM_FIELDS)


def is_plain(lm: Any, state: State, given: dict[str, Any]) -> bool:
    """Whether nothing changed since the loss was seen to be that of head and body alone."""
    text = lm.config.get_text_config(decoder=True)
    router = given.get("output_router_logits", getattr(text, "output_router_logits", False))
    if router or not config_tells_form(lm):
        return False
    return lm.loss_function is state.loss_function and "ignore_index" not in given


def _straight_loss(lm: Any, given: dict[str, Any], columns: dict[str, Any]) -> Any:
    """From the body to the head: compiled code does not look into the model's own forward."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    labels, shift_labels, n_items = (
        given.pop(k, None) for k in ("labels", "shift_labels", "num_items_in_batch")
    )
    body = lm.base_model(**given, return_dict=True)
    head = lm.get_output_embeddings()
    hidden = body.last_hidden_state
    size = (hidden.shape[0], hidden.shape[1])
    vocabulary = int(owner(head).out_features)
    rows = read_rows(labels, shift_labels, columns, size, vocabulary, hidden, n_items)
    return CausalLMOutputWithPast(
        loss=lm._w2s_fast.loss_sum(lm, rows, head, Form(*logit_form(lm.config))),
        past_key_values=getattr(body, "past_key_values", None),
        hidden_states=getattr(body, "hidden_states", None),
        attentions=getattr(body, "attentions", None),
    )


def outside(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that compiled code leaves alone; only there, for the compiler is slow to load."""
    return torch.compiler.disable(function)


def _progress(lm: Any, state: State, columns: dict[str, Any]) -> None:
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


def _read_targets(lm: Any, given: dict[str, Any], columns: dict[str, Any]) -> None:
    """Labels and weak columns, checked for their types, in the place of what came.

    Raises:
        W2SError: for what is no tensor, and for a dtype that is none of its kind.
    """
    size = batch_size(given, columns)
    for held, names in ((given, ("labels", "shift_labels")), (columns, tuple(columns))):
        targets = {n: held[n] for n in names if held.get(n) is not None}
        for name, value in targets.items():
            device = value.device if isinstance(value, Tensor) else torch.device("cpu")
            held.update(read_targets({name: value}, size, device))


def refuse_logits(given: dict[str, Any]) -> None:
    """Raise ``W2SError`` where a forward with targets is asked for logits."""
    keep = given.pop("logits_to_keep", None)
    for name, asked in (
        ("logits_to_keep", isinstance(keep, Tensor) or bool(keep)),
        ("output_logits", bool(given.pop("output_logits", None))),
    ):
        if asked:
            raise W2SError(
                f"{name} asks for logits, and a patched model makes none beside a loss; leave the "
                "targets out of this forward, or unpatch the model"
            )
