"""Compare a patched model with its unpatched self on twelve tokens.

The comparison does not depend on the precision or size of the logits. The head's output z is
recorded while the model's own forward runs; the logits of that forward must equal the recorded
transform of z, to the rounding of a few operations. The model's loss must equal that of its forward
with fp32 cross-entropy of its own logits in place of the fused loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from w2s_fast.errors import W2SError, one_line
from w2s_fast.integrations.patching.forward import batch_size, logit_fields, run_forward
from w2s_fast.integrations.patching.heads import call_head
from w2s_fast.integrations.patching.lazy_logits import LazyLogits
from w2s_fast.integrations.patching.logit_transform import LogitTransform
from w2s_fast.integrations.patching.loss_call import LossCall
from w2s_fast.integrations.patching.own_forward import own_forward
from w2s_fast.integrations.patching.probe import evaluating, head_device, probe_batch
from w2s_fast.integrations.patching.state import State
from w2s_fast.models.weights import is_partitioned
from w2s_fast.ops.lazy_logits import logit_form
from w2s_fast.ops.vocab_parallel.dtensor import is_dtensor, replicated, whole

# Minimum number of rounding operations between head and loss: division, tanh and product.
_MIN_ROUNDINGS = 3
_LOSS_TOLERANCE = 1e-5  # relative
# Largest logit of the comparison: large enough to reveal a soft-cap.
_LARGEST_LOGIT = 60.0


def has_weights(lm: Any) -> bool:
    """Return whether the weights are loaded and whole: not on meta, partitioned or sharded."""
    return not any(
        w.is_meta or is_partitioned(w) or hasattr(w, "device_mesh") for w in lm.parameters()
    )


def verify_now(lm: Any, state: State) -> None:
    """Compare on twelve tokens, if weights are loaded and token ids are all the model needs.

    Raises:
        W2SError: see ``verify``; also if the forward fails although it needs only token ids.
    """
    if not has_weights(lm):
        return
    try:
        verify(lm, state, probe_batch(lm))
    except _ForwardError as e:
        if not _needs_more(lm, e.__cause__):
            raise


def verify_first(lm: Any, state: State, inputs: dict[str, Any], columns: dict[str, Any]) -> None:
    """Compare at the first forward with targets, on twelve tokens or on its batch.

    Raises:
        W2SError: see ``verify``.
    """
    try:
        return verify(lm, state, probe_batch(lm))
    except _ForwardError:
        batch = {k: v for k, v in inputs.items() if v is not None and k != "return_dict"}
        batch.pop("num_items_in_batch", None)
        if batch.get("labels") is None:
            shift_labels = batch.pop("shift_labels", None)
            zeros = torch.zeros(batch_size(inputs, columns), dtype=torch.int64)
            batch["labels"] = zeros.to(head_device(lm)) if shift_labels is None else shift_labels
    verify(lm, state, batch)


@torch.no_grad()
def verify(lm: Any, state: State, batch: dict[str, Any]) -> None:
    """Compare logits and loss of a patched model with its own.

    Raises:
        W2SError: if they differ, or if the forward fails.
    """
    outputs: list[HeadOutput] = []
    with evaluating(lm), torch.random.fork_rng(devices=[]):
        with _recording_head(lm, outputs):
            reference = _forward(lm, dict(batch))
        call = _Reference(lm, reference, outputs)
        out = run_forward(lm, dict(batch), call)
        _compare_head(lm, call, outputs[0].original)
    loss = reference.loss
    if not isinstance(loss, Tensor) or not _close(out.loss, loss, loss, _LOSS_TOLERANCE):
        _raise_difference(lm, "loss", "the fp32 cross-entropy of its logits")
    state.compared = True
    state.loss_function = lm.loss_function
    state.logit_fields = logit_fields(lm)
    state.plain = _check_plain(lm, call, loss, batch)


class _ForwardError(W2SError):
    """The model's own forward raised an exception."""


def _needs_more(lm: Any, e: BaseException | None) -> bool:
    """Return whether a forward may have failed because it needs more than token ids."""
    if getattr(lm, "main_input_name", "input_ids") != "input_ids":
        return True
    inner = getattr(lm.config, "sub_configs", None) or getattr(lm.config, "is_encoder_decoder", 0)
    return bool(inner) or isinstance(e, TypeError | ValueError | AttributeError)


def _forward(lm: Any, batch: dict[str, Any]) -> Any:
    try:
        return own_forward(lm, batch)
    except Exception as e:
        raise _ForwardError(f"the forward of {type(lm).__name__} fails: {one_line(e)}") from e


class HeadOutput(NamedTuple):
    """One call of a head."""

    original: Tensor
    enlarged: Tensor  # what the model got in its place


class _Reference(LossCall):
    """Computes the cross-entropy of the model's own logits in place of the fused loss."""

    def __init__(self, lm: Any, reference: Any, outputs: list[HeadOutput]) -> None:
        super().__init__(lm, lm._w2s_fast, None, False, {}, None, (0, 0))
        self.reference, self.outputs = reference, outputs

    def cross_entropy(
        self, logits: LazyLogits, target: Tensor, ignore: int, reduction: str, smoothing: float
    ) -> Tensor:
        """See ``LossCall.cross_entropy``."""
        z = self._head_output(logits)
        if z is None or z.shape[-1] < logits.width:
            _raise_difference(self.lm, "head", "called as it was before")
        values = logits.replay(z)
        if self.calls == 0:
            self.logits = logits
        self.calls += 1
        self._compare(logits, z, values)
        self.loss = F.cross_entropy(
            values, target.to(values.device), ignore_index=ignore, reduction=reduction,
            label_smoothing=smoothing,
        )  # fmt: skip
        return self.loss

    def compare_output(self, out: Any) -> None:
        """Compare the logits that the forward returns."""
        expected, lazy = getattr(self.reference, "logits", None), getattr(out, "logits", None)
        if not isinstance(expected, Tensor) or not isinstance(lazy, LazyLogits):
            _raise_difference(self.lm, "logits", "its head on its hidden states")
        z = self._head_output(lazy)
        if z is None or lazy.shape != expected.shape:
            _raise_difference(self.lm, "logits", "its head on its hidden states")
        self._compare(lazy, z, expected)

    def _head_output(self, logits: LazyLogits) -> Tensor | None:
        """Return the recorded output of the head for the hidden states of ``logits``."""
        shape = logits.hidden.shape[:-1]
        return next((o.enlarged for o in self.outputs if o.enlarged.shape[:-1] == shape), None)

    def _compare(self, logits: LazyLogits, z: Tensor, values: Tensor) -> None:
        """Compare the recorded transform of the head's output with the model's logits."""
        transform = logits.transform()
        computed = transform(z.to(torch.promote_types(z.dtype, torch.float32)))
        computed = computed.flatten(0, -2)[logits.positions.flatten()].view(values.shape)
        size = (
            values if transform.bias is None else values.abs() + (computed - transform.bias).abs()
        )
        roundings = max(_MIN_ROUNDINGS, len(logits.steps) + 1)
        if not _close(computed, values, size, roundings * torch.finfo(z.dtype).eps):
            _raise_difference(self.lm, "logits", "its head on its hidden states")


def _compare_head(lm: Any, call: LossCall, z: Tensor) -> None:
    """Compare the product that the fused loss computes with the head's output."""
    assert call.logits is not None
    hidden = call.logits.hidden

    def product(hidden: Tensor, weight: Any, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        if is_dtensor(weight):
            hidden = replicated(hidden, weight.device_mesh)
        size = hidden.abs() @ weight.abs().T
        return F.linear(hidden, weight, bias), size if bias is None else size + bias.abs()

    computed, size = (whole("logits", t) for t in call_head(call.head, hidden, product))
    if computed.shape != z.shape or not _close(computed, z, size, 4 * torch.finfo(z.dtype).eps):
        _raise_difference(lm, "head", "the product of its hidden states and its weight")


def _close(a: Tensor, b: Tensor, size: Tensor, tolerance: float) -> bool:
    """Return whether two tensors agree to a fraction of ``size``, or to their dtype's rounding."""
    coarsest = max(torch.finfo(t.dtype).eps for t in (a, b))
    tolerance = max(tolerance, 2 * coarsest)
    a, b = a.double(), b.double()
    return bool(((a - b).abs() <= tolerance * size.double().abs().clamp_min(1e-3)).all())


def _raise_difference(lm: Any, what: str, expected: str) -> NoReturn:
    raise W2SError(
        f"{type(lm).__name__} cannot be patched: expected its {what} to be {expected}; use its own "
        "forward"
    )


def _check_plain(lm: Any, call: _Reference, loss: Tensor, batch: dict[str, Any]) -> bool:
    """Return whether the model is only backbone, head and a shift by one; see ``State.plain``."""
    logits = call.logits
    if call.calls != 1 or logits is None or lm.base_model is lm or call.loss is None:
        return False
    transform = logits.transform()
    if transform.bias is not None or transform.classes is not None:
        return False
    if getattr(lm.config, "is_encoder_decoder", False):
        return False
    same = bool((call.loss.double() - loss.double()).abs() <= _LOSS_TOLERANCE * loss.double().abs())
    softcap, factor = logit_form(lm.config)
    return (
        same
        and transform.rounded() == LogitTransform(softcap, factor).rounded()
        and _head_gets_last_state(lm, logits, batch)
    )


def _head_gets_last_state(lm: Any, logits: LazyLogits, batch: dict[str, Any]) -> bool:
    """Return whether the head's input is the last hidden state of the backbone, unchanged."""
    batch = {k: v for k, v in batch.items() if k != "labels"}
    with evaluating(lm):
        try:
            last = lm.base_model(**batch, return_dict=True).last_hidden_state
        except Exception:  # a backbone that needs more than ids is never compiled
            return False
    return (
        isinstance(last, Tensor)
        and last.dtype == logits.hidden.dtype
        and torch.equal(last, logits.hidden)
    )


@contextmanager
def _recording_head(lm: Any, outputs: list[HeadOutput]) -> Iterator[None]:
    """Record the outputs of the head, and enlarge them as if its hidden states were larger."""

    def hook(module: Any, args: Any, out: Tensor) -> Tensor:
        enlarged = out * (_LARGEST_LOGIT / out.abs().max().clamp_min(1e-6))
        outputs.append(HeadOutput(out, enlarged.clone()))  # the model may change it in place
        return enlarged

    handle = lm.get_output_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
