"""Compare a patched model with itself unpatched: loss and every gradient, in fp32 and bf16.

A labelled batch passes through the model in training and in eval mode, with and without
``num_items_in_batch``, and with the router's loss where the configuration has one. In fp32, loss
and gradients agree to rounding. In bf16 the model rounds its logits, the fused loss does not. Hence
the unpatched forward gets a head that computes in fp32 and is compared within tight tolerances; the
plain bf16 loss is compared with a tolerance for rounding. A coefficient of 1 makes a router's loss
as large as the loss itself.
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
# Tolerances: of the loss, of a gradient's norm relative to itself, and relative to the largest.
TOLERANCES = {"fp32": (1e-5, 1e-4, 1e-5), "bf16": (2e-3, 3e-2, 3e-3)}
ROUNDED = 0.1  # relative tolerance of the plain loss in bf16
EXACT, REFUSED, WRONG, CRASHED, UNBUILT = "exact", "refused", "wrong", "crashed", "not built"


@dataclass
class Outcome:
    """The outcome of one class in one dtype.

    Attributes:
        state: One of ``EXACT``, ``REFUSED``, ``WRONG``, ``CRASHED``, ``UNBUILT``.
        why: First line of the error, or the difference; empty if exact.
    """

    state: str
    why: str = ""


def check(name: str) -> dict[str, Outcome]:
    """Check a class; return its outcome by dtype."""
    try:
        how, inputs = _recipe(name)
    except UnpatchedError as e:
        return dict.fromkeys(DTYPES, Outcome(UNBUILT, str(e)))
    except Exception as e:
        return dict.fromkeys(DTYPES, Outcome(UNBUILT, one_line(e)))
    return {dtype: _check_dtype(name, how, inputs, dtype) for dtype in DTYPES}


class UnpatchedError(Exception):
    """The unpatched model fails."""


def _recipe(name: str) -> tuple[str, Inputs]:
    """Return the first way of building a class and the first batch that work unpatched.

    Raises:
        Exception: The error of the first way, if none works.
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
            except UnpatchedError as e:
                first = first or e
    assert first is not None
    raise first


def _check_dtype(name: str, how: str, inputs: Inputs, dtype: str) -> Outcome:
    model = tiny(name, how).to(DTYPES[dtype])
    kind = DTYPES[dtype]
    inputs = {k: v.to(kind) if v.is_floating_point() else v for k, v in inputs.items()}
    try:
        return _check_settings(model, inputs, dtype)
    except W2SError as e:
        return Outcome(REFUSED, str(e))
    except UnpatchedError as e:
        return Outcome(UNBUILT, str(e))
    except Exception as e:
        return Outcome(CRASHED, one_line(e))


def _check_settings(model: Any, inputs: Inputs, dtype: str) -> Outcome:
    """Check every setting that the unpatched model supports, at least one."""
    failed: UnpatchedError | None = None
    checked = 0
    for router, training, extra in _settings(model):
        try:
            difference = _difference(model.train(training), {**inputs, **extra}, dtype)
            checked += 1
        except UnpatchedError as e:
            failed = e
            continue
        if difference:
            where = f"{'training' if training else 'eval'}, {', '.join(extra) or 'mean'}"
            return Outcome(WRONG, f"{where}{', router loss' if router else ''}: {difference}")
    if failed is not None and not checked:
        raise failed
    return Outcome(EXACT)


def _settings(model: Any) -> Iterator[tuple[bool, bool, dict[str, Any]]]:
    """Yield (router's loss, training mode, extra inputs): loss as a mean and as a sum."""
    text = model.config.get_text_config(decoder=True)
    routers = [False]
    if hasattr(text, "output_router_logits"):
        routers = [False, True]
        for holder in (text, *model.modules()):  # some copy the coefficient when built
            for field in ("router_aux_loss_coef", "router_z_loss_coef", "aux_loss_coef"):
                if isinstance(getattr(holder, field, None), float):
                    setattr(holder, field, 1.0)
    for router in routers:
        if len(routers) > 1:
            text.output_router_logits = router
        for training in (False, True):
            for extra in ({}, {"num_items_in_batch": 11}):
                yield router, training, extra


def _difference(model: Any, inputs: dict[str, Any], dtype: str) -> str:
    """Return what differs from the unpatched model; empty if nothing does."""
    try:
        plain = _results(model, inputs)["loss"]
        with _fp32_head(model):
            unpatched = _results(model, inputs)
    except UnpatchedError as e:
        if "unexpected keyword argument 'num_items_in_batch'" not in str(e):
            raise
        return _check_rejected(model, inputs)
    w2s_fast.patch(model)
    try:
        patched = _results(model, inputs, patched=True)
    finally:
        w2s_fast.unpatch(model)
    if abs(float(plain - patched["loss"])) > ROUNDED * max(float(plain), 1.0):
        return f"loss is {float(patched['loss']):.4g} instead of {float(plain):.4g}"
    return _largest_difference(unpatched, patched, dtype)


def _check_rejected(model: Any, inputs: dict[str, Any]) -> str:
    """Check that a keyword which the unpatched forward lacks raises ``W2SError``."""
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
    """Compute logits in fp32 from the 16-bit weights and hidden states."""
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


def _results(model: Any, inputs: dict[str, Any], patched: bool = False) -> dict[str, Tensor]:
    """Return loss and gradients; an error of the unpatched model becomes ``UnpatchedError``."""
    torch.manual_seed(0)
    np.random.seed(0)  # audio masks
    model.zero_grad(set_to_none=True)
    try:
        loss = model(**inputs).loss
        if loss is None or not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss}")
        loss.backward()
    except Exception as e:
        if patched:
            raise
        raise UnpatchedError(one_line(e)) from e
    grads = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().float(), **grads}


def _largest_difference(
    unpatched: dict[str, Tensor], patched: dict[str, Tensor], dtype: str
) -> str:
    """Return the first difference beyond tolerance, the loss before the gradients."""
    loss, grad, total = TOLERANCES[dtype]
    largest = max(float(g.norm()) for n, g in unpatched.items() if n != "loss")
    zero = torch.zeros(())
    for name in {**unpatched, **patched}:
        a, b = unpatched.get(name, zero), patched.get(name, zero)
        size = float(a.norm())
        tolerance = grad * size + total * largest
        if name == "loss":
            tolerance = loss * max(size, 1.0)
        if not float((a - b).norm()) <= tolerance:
            return f"{name} is off by {float((a - b).norm()):.2g} of {size:.3g}"
    return ""


def one_line(e: BaseException) -> str:
    """Return an exception in one line, with its origin."""
    at = traceback.extract_tb(e.__traceback__)[-1]
    message = " ".join(str(e).split())[:160]
    return f"{type(e).__name__}: {message} ({at.filename.rpartition('/')[2]}:{at.lineno})"
