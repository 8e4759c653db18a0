"""A patched model against itself: loss and every gradient, in fp32 and bf16.

A batch with labels goes through the model in training and in eval mode, with and without
``num_items_in_batch``, and with the router's loss where the configuration has one. In fp32 loss and
gradients agree to rounding. In bf16 the model rounds its logits and the fused loss does not, so the
model's own forward is given a head that computes in fp32, and what it gives is compared as sharply;
its plain loss is compared with room for the rounding. A coefficient of 1 makes a router's loss as
large as the loss itself.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import w2s_fast
from bench.architectures.model_inputs import Inputs, batches
from bench.architectures.tiny_models import WAYS, tiny
from w2s_fast.errors import W2SError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Room of the loss, of a gradient's norm relative to itself, and to the largest.
ROOM = {"fp32": (1e-5, 1e-4, 1e-5), "bf16": (2e-3, 3e-2, 3e-3)}
ROUNDED = 0.1  # of the plain loss in bf16
EXACT, REFUSED, WRONG, CRASHED, UNBUILT = "exact", "refused", "wrong", "crashed", "not built"


@dataclass
class Outcome:
    """What became of one class in one dtype.

    Attributes:
        state: one of ``EXACT``, ``REFUSED``, ``WRONG``, ``CRASHED``, ``UNBUILT``.
        why: the error's first line, or what differs; empty for exact ones.
    """

    state: str
    why: str = ""


def check(name: str) -> dict[str, Outcome]:
    """Outcome of a class by dtype."""
    try:
        how, inputs = _recipe(name)
    except OwnError as e:
        return dict.fromkeys(DTYPES, Outcome(UNBUILT, str(e)))
    except Exception as e:
        return dict.fromkeys(DTYPES, Outcome(UNBUILT, line(e)))
    return {dtype: _compared(name, how, inputs, dtype) for dtype in DTYPES}


class OwnError(Exception):
    """The model's own forward fails, patched or not."""


def _recipe(name: str) -> tuple[str, Inputs]:
    """The first way of building a class, and its first batch, of which its own forward works.

    Raises:
        Exception: of the first way, if none does.
    """
    import transformers

    if not hasattr(transformers, name):
        raise ValueError(f"transformers {transformers.__version__} has no {name}")
    first: Exception | None = None
    for how in WAYS:
        try:
            model = tiny(name, how)
        except Exception as e:
            first = first or e
            continue
        for inputs in batches(model):
            try:
                _results(model, inputs)
                return how, inputs
            except OwnError as e:
                first = first or e
    assert first is not None
    raise first


def _compared(name: str, how: str, inputs: Inputs, dtype: str) -> Outcome:
    model = tiny(name, how).to(DTYPES[dtype])
    kind = DTYPES[dtype]
    inputs = {k: v.to(kind) if v.is_floating_point() else v for k, v in inputs.items()}
    try:
        return _cases(model, inputs, dtype)
    except W2SError as e:
        return Outcome(REFUSED, str(e))
    except OwnError as e:
        return Outcome(UNBUILT, str(e))
    except Exception as e:
        return Outcome(CRASHED, line(e))


def _cases(model: Any, inputs: Inputs, dtype: str) -> Outcome:
    """Every case that the model's own forward can do; one at least."""
    failed: OwnError | None = None
    compared = 0
    for router, training, more in _settings(model):
        try:
            wrong = _differs(model.train(training), {**inputs, **more}, dtype)
            compared += 1
        except OwnError as e:
            failed = e
            continue
        if wrong:
            where = f"{'training' if training else 'eval'}, {', '.join(more) or 'mean'}"
            return Outcome(WRONG, f"{where}{', router loss' if router else ''}: {wrong}")
    if failed is not None and not compared:
        raise failed
    return Outcome(EXACT)


def _settings(model: Any) -> Iterator[tuple[bool, bool, dict[str, Any]]]:
    """With and without the router's loss, in training and in eval mode, as a mean and as a sum."""
    text = model.config.get_text_config(decoder=True)
    routers = [False]
    if hasattr(text, "output_router_logits"):
        routers = [False, True]
        for holder in (text, *model.modules()):  # some copy the coefficient when they are built
            for field in ("router_aux_loss_coef", "router_z_loss_coef", "aux_loss_coef"):
                if isinstance(getattr(holder, field, None), float):
                    setattr(holder, field, 1.0)
    for router in routers:
        if len(routers) > 1:
            text.output_router_logits = router
        for training in (False, True):
            for more in ({}, {"num_items_in_batch": 11}):
                yield router, training, more


def _differs(model: Any, inputs: dict[str, Any], dtype: str) -> str:
    """What of loss and gradients is not the model's own; nothing if all is."""
    try:
        plain = _results(model, inputs)["loss"]
        with _fp32_head(model):
            theirs = _results(model, inputs)
    except OwnError as e:
        if "unexpected keyword argument 'num_items_in_batch'" not in str(e):
            raise
        return _refused(model, inputs)
    w2s_fast.patch(model)
    try:
        ours = _results(model, inputs, ours=True)
    finally:
        w2s_fast.unpatch(model)
    if abs(float(plain - ours["loss"])) > ROUNDED * max(float(plain), 1.0):
        return f"loss is {float(ours['loss']):.4g} instead of {float(plain):.4g}"
    return _far(theirs, ours, dtype)


def _refused(model: Any, inputs: dict[str, Any]) -> str:
    """A keyword that the model's own forward does not have is a W2SError."""
    w2s_fast.patch(model)
    try:
        model(**inputs)
        return "num_items_in_batch was accepted"
    except W2SError:
        return ""
    finally:
        w2s_fast.unpatch(model)


@contextmanager
def _fp32_head(model: Any) -> Iterator[None]:
    """Logits of the weights and hidden states there are, without the rounding of 16 bit."""
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.weight.dtype == torch.float32:
        yield
        return

    def forward(hidden: Tensor) -> Tensor:
        bias = None if head.bias is None else head.bias.float()
        return torch.nn.functional.linear(hidden.float(), head.weight.float(), bias)

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


def _results(model: Any, inputs: dict[str, Any], ours: bool = False) -> dict[str, Tensor]:
    """Loss and gradients; what the model's own forward raises comes as ``OwnError``."""
    torch.manual_seed(0)
    np.random.seed(0)  # masks of sound
    model.zero_grad(set_to_none=True)
    try:
        loss = model(**inputs).loss
        if loss is None or not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss}")
        loss.backward()
    except Exception as e:
        if ours:
            raise
        raise OwnError(line(e)) from e
    grads = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().float(), **grads}


def _far(theirs: dict[str, Tensor], ours: dict[str, Tensor], dtype: str) -> str:
    """What differs by more than its room: the loss first, then the gradients."""
    loss, grad, all_of_them = ROOM[dtype]
    largest = max(float(g.norm()) for n, g in theirs.items() if n != "loss")
    zero = torch.zeros(())
    for name in {**theirs, **ours}:
        a, b = theirs.get(name, zero), ours.get(name, zero)
        size = float(a.norm())
        room = grad * size + all_of_them * largest
        if name == "loss":
            room = loss * max(size, 1.0)
        if not float((a - b).norm()) <= room:
            return f"{name} is off by {float((a - b).norm()):.2g} of {size:.3g}"
    return ""


def line(e: BaseException) -> str:
    """An exception in one line, with where it came from."""
    at = traceback.extract_tb(e.__traceback__)[-1]
    told = " ".join(str(e).split())[:160]
    return f"{type(e).__name__}: {told} ({at.filename.rpartition('/')[2]}:{at.lineno})"
