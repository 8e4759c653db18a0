"""The comparison of a patched model with what it was, on twelve tokens.

Nothing in it depends on the precision or the size of the logits. The head's own output z is taken
down while the model's forward runs as it is; the logits of that forward must be the recorded form
of this very z, to the rounding of a few steps. The model's loss must be the one that its forward
gives with fp32 cross-entropy of its own logits in the place where the fused loss will be.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.adapters import owner
from w2s_fast.integrations.patching.form import Form
from w2s_fast.integrations.patching.forward import batch_size, other_fields, run
from w2s_fast.integrations.patching.heads import through
from w2s_fast.integrations.patching.lazy_logits import LazyLogits
from w2s_fast.integrations.patching.loss_call import LossCall
from w2s_fast.integrations.patching.own_forward import own_forward
from w2s_fast.integrations.patching.state import State
from w2s_fast.models.weights import is_partitioned
from w2s_fast.ops.lazy_logits import logit_form

# Steps between the head's output and the loss that round, at least: division, tanh and product.
_ULPS = 3
_LOSS = 1e-5
# The largest logit of the comparison: a soft-cap shows there, however small the model's own are.
_LARGEST = 60.0


def computable(lm: Any) -> bool:
    """Whether the weights are here: not on the meta device, partitioned or sharded."""
    return not any(
        w.is_meta or is_partitioned(w) or hasattr(w, "device_mesh") for w in lm.parameters()
    )


def compare_now(lm: Any, state: State) -> None:
    """Compare on twelve tokens, if weights are there and token ids are all that the model needs.

    Raises:
        W2SError: see ``verify``; also if its forward fails although it needs nothing else.
    """
    if not computable(lm):
        return
    try:
        verify(lm, state, _tokens(lm))
    except _Failed as e:
        if not _needs_more(lm, e.__cause__):
            raise


def compare_first(lm: Any, state: State, given: dict[str, Any], columns: dict[str, Any]) -> None:
    """Compare at the first forward with targets: on twelve tokens, or else on its batch.

    Raises:
        W2SError: see ``verify``.
    """
    try:
        return verify(lm, state, _tokens(lm))
    except _Failed:
        batch = {k: v for k, v in given.items() if v is not None and k != "return_dict"}
        batch.pop("num_items_in_batch", None)
        if batch.get("labels") is None:
            marks = batch.pop("shift_labels", None)
            zeros = torch.zeros(batch_size(given, columns), dtype=torch.int64)
            batch["labels"] = zeros.to(_device(lm)) if marks is None else marks
    verify(lm, state, batch)


@torch.no_grad()
def verify(lm: Any, state: State, batch: dict[str, Any]) -> None:
    """Compare logits and loss of a patched model with its own.

    Raises:
        W2SError: if they differ, or if its forward fails.
    """
    heard: list[tuple[Tensor, Tensor]] = []
    with _evaluating(lm), torch.random.fork_rng(devices=[]):
        with _listening(lm, heard):
            theirs = _forward(lm, dict(batch))
        call = _Reference(lm, theirs, heard)
        out = run(lm, dict(batch), call)
        _same_head(lm, call, heard[0][0])
    loss = theirs.loss
    if not isinstance(loss, Tensor) or not _near(out.loss, loss, loss, _LOSS):
        _refuse(lm, "loss", "the fp32 cross-entropy of its logits")
    state.compared = True
    state.loss_function = lm.loss_function
    state.other_fields = other_fields(lm)
    state.plain = _is_plain(lm, call, loss, batch)


class _Failed(W2SError):
    """The model's own forward raised."""


def _needs_more(lm: Any, e: BaseException | None) -> bool:
    """Whether a forward on token ids may have failed for want of images, sound or the like."""
    if getattr(lm, "main_input_name", "input_ids") != "input_ids":
        return True
    inner = getattr(lm.config, "sub_configs", None) or getattr(lm.config, "is_encoder_decoder", 0)
    return bool(inner) or isinstance(e, TypeError | ValueError | AttributeError)


def _device(lm: Any) -> torch.device:
    device: torch.device = owner(lm.get_output_embeddings()).weight.device
    return device


def _tokens(lm: Any) -> dict[str, Any]:
    """A batch (2, 6) of ids that stand for text, some of them masked and some without a label."""
    v = int(owner(lm.get_output_embeddings()).out_features)
    special = _special(lm.config.to_dict())
    text = [i for i in range(v) if i not in special] or [0]
    picked = [text[i * max(len(text) // 12, 1) % len(text)] for i in range(12)]
    ids = torch.tensor(picked, device=_device(lm)).view(2, 6)
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[1, 4:], labels[0, :2] = 0, -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    caches = "use_cache" in inspect.signature(type(lm).forward).parameters
    return {**batch, "use_cache": False} if caches else batch


def _special(config: dict[str, Any]) -> set[int]:
    """Ids of images, padding and the like, at any depth of a configuration."""
    found: set[int] = set()
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _special(value)
        elif str(name).endswith(("token_id", "token_index")) and isinstance(value, int):
            found.add(value)
    return found


def _forward(lm: Any, batch: dict[str, Any]) -> Any:
    try:
        return own_forward(lm, batch)
    except Exception as e:
        told = " ".join(str(e).split())[:300]
        raise _Failed(f"the forward of {type(lm).__name__} fails: {told}") from e


class _Reference(LossCall):
    """Cross-entropy of the model's own logits, where the fused loss will be."""

    def __init__(self, lm: Any, theirs: Any, heard: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__(lm, lm._w2s_fast, None, False, {}, None, (0, 0))
        self.theirs, self.heard = theirs, heard

    def cross_entropy(
        self, logits: LazyLogits, target: Tensor, ignore: int, reduction: str, smoothing: float
    ) -> Tensor:
        """See ``LossCall.cross_entropy``."""
        z = next((z for _, z in self.heard if z.shape[:-1] == logits.hidden.shape[:-1]), None)
        if z is None or z.shape[-1] < logits.width:
            _refuse(self.lm, "head", "called as it was before")
        values = logits.replay(z)
        if self.calls == 0:
            self.logits = logits
        self.calls += 1
        self._compare(logits, z, values)
        given: dict[str, Any] = {"ignore_index": ignore, "reduction": reduction}
        target = target.to(values.device)
        self.loss = F.cross_entropy(values, target, label_smoothing=smoothing, **given)
        return self.loss

    def compare_output(self, out: Any) -> None:
        """The model gives what was recorded of its logits."""
        theirs, lazy = getattr(self.theirs, "logits", None), getattr(out, "logits", None)
        if not isinstance(theirs, Tensor) or not isinstance(lazy, LazyLogits):
            _refuse(self.lm, "logits", "its head on its hidden states")
        z = next((z for _, z in self.heard if z.shape[:-1] == lazy.hidden.shape[:-1]), None)
        if z is None or lazy.shape != theirs.shape:
            _refuse(self.lm, "logits", "its head on its hidden states")
        self._compare(lazy, z, theirs)

    def _compare(self, logits: LazyLogits, z: Tensor, values: Tensor) -> None:
        """The recorded form of the head's output is what the model made of it."""
        form = logits.form()
        got = form(z.to(torch.promote_types(z.dtype, torch.float32)))
        got = got.flatten(0, -2)[logits.positions.flatten()].view(values.shape)
        size = values if form.bias is None else values.abs() + (got - form.bias).abs()
        steps = max(_ULPS, len(logits.steps) + 1)
        if not _near(got, values, size, steps * torch.finfo(z.dtype).eps):
            _refuse(self.lm, "logits", "its head on its hidden states")


def _same_head(lm: Any, call: LossCall, z: Tensor) -> None:
    """What the fused loss multiplies gives the head's output, adapters included."""
    assert call.logits is not None
    hidden = call.logits.hidden

    def both(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        size = hidden.abs() @ weight.abs().T
        return F.linear(hidden, weight, bias), size if bias is None else size + bias.abs()

    ours, size = through(call.head, hidden, both)
    if ours.shape != z.shape or not _near(ours, z, size, 4 * torch.finfo(z.dtype).eps):
        _refuse(lm, "head", "the product of its hidden states and its weight")


def _near(a: Tensor, b: Tensor, size: Tensor, room: float) -> bool:
    """Whether two tensors agree to ``room`` of their size, or to the steps of their dtype."""
    finest = min((t.dtype for t in (a, b)), key=lambda d: -torch.finfo(d).eps)
    room = max(room, 2 * torch.finfo(finest).eps)
    a, b = a.double(), b.double()
    return bool(((a - b).abs() <= room * size.double().abs().clamp_min(1e-3)).all())


def _refuse(lm: Any, what: str, expected: str) -> NoReturn:
    raise W2SError(
        f"{type(lm).__name__} cannot be patched: expected its {what} to be {expected}; use its own "
        "forward"
    )


def _is_plain(lm: Any, call: _Reference, loss: Tensor, batch: dict[str, Any]) -> bool:
    """Whether body, head and a shift by one are all there is; see ``State.plain``."""
    seen = call.logits
    if call.calls != 1 or seen is None or lm.base_model is lm or call.loss is None:
        return False
    form = seen.form()
    if form.bias is not None or form.classes is not None:
        return False
    if getattr(lm.config, "is_encoder_decoder", False):
        return False
    same = bool((call.loss.double() - loss.double()).abs() <= _LOSS * loss.double().abs())
    softcap, factor = logit_form(lm.config)
    return same and form.plain() == Form(softcap, factor).plain() and _straight(lm, seen, batch)


def _straight(lm: Any, seen: LazyLogits, batch: dict[str, Any]) -> bool:
    """Whether the head gets the last hidden states of the body as they are."""
    batch = {k: v for k, v in batch.items() if k != "labels"}
    with _evaluating(lm):
        try:
            last = lm.base_model(**batch, return_dict=True).last_hidden_state
        except Exception:  # a body that wants more than ids is no matter for compiled code
            return False
    return (
        isinstance(last, Tensor)
        and last.dtype == seen.hidden.dtype
        and torch.equal(last, seen.hidden)
    )


@contextmanager
def _listening(lm: Any, heard: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Scale what the head gives, as if its hidden states were larger, and take it down."""

    def hook(module: Any, args: Any, out: Tensor) -> Tensor:
        larger = out * (_LARGEST / out.abs().max().clamp_min(1e-6))
        heard.append((out, larger.clone()))  # the model may change its own in place
        return larger

    handle = lm.get_output_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


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
