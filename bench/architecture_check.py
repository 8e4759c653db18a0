"""A patched model against itself: loss and every gradient, in fp32 and bf16.

A batch with labels goes through the model in training and in eval mode, with and without
``num_items_in_batch``, and with the router's loss where the configuration has one. In fp32 loss and
gradients agree to rounding. In bf16 the model rounds its logits and the fused loss does not; each
gradient has room for that and for nothing else. A coefficient of 1 makes a router's loss as large
as the loss itself.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import w2s_fast
from bench.architecture_models import WAYS, V, tiny
from w2s_fast.errors import W2SError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Relative room of the loss and of a gradient's norm.
ROOM = {"fp32": (1e-5, 1e-4), "bf16": (1e-2, 6e-2)}
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


def batch() -> dict[str, Tensor]:
    """(3, 8) ids of text, some of them masked, the first two of each row without a label."""
    ids = torch.randint(5, V - 26, (3, 8), generator=torch.Generator().manual_seed(0))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[:, :2] = -100
    mask[0, 6:], labels[0, 6:] = 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def check(name: str) -> dict[str, Outcome]:
    """Outcome of a class by dtype."""
    try:
        how = _way(name)
    except Exception as e:
        return dict.fromkeys(DTYPES, Outcome(UNBUILT, _line(e)))
    return {dtype: _compared(name, how, dtype) for dtype in DTYPES}


def _way(name: str) -> str:
    """The first way of building a class whose own forward works on text.

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
            loss = model(**batch()).loss
            if loss is None or not torch.isfinite(loss):
                raise ValueError(f"its own loss is {loss}")
            return how
        except Exception as e:
            first = first or e
    assert first is not None
    raise first


def _compared(name: str, how: str, dtype: str) -> Outcome:
    model = tiny(name, how).to(DTYPES[dtype])
    try:
        return _cases(model, dtype)
    except W2SError as e:
        return Outcome(REFUSED, str(e))
    except Exception as e:
        return Outcome(CRASHED, _line(e))


def _cases(model: Any, dtype: str) -> Outcome:
    text = model.config.get_text_config(decoder=True)
    routers = [False]
    if hasattr(text, "output_router_logits"):
        routers = [False, True]
        for field in ("router_aux_loss_coef", "router_z_loss_coef", "aux_loss_coef"):
            if hasattr(text, field):
                setattr(text, field, 1.0)
    for router in routers:
        text.output_router_logits = router
        for training in (False, True):
            for more in ({}, {"num_items_in_batch": 11}):
                wrong = _differs(model.train(training), more, dtype)
                if wrong:
                    where = f"{'training' if training else 'eval'}, {', '.join(more) or 'mean'}"
                    return Outcome(WRONG, f"{where}{', router loss' if router else ''}: {wrong}")
    return Outcome(EXACT)


def _differs(model: Any, more: dict[str, Any], dtype: str) -> str:
    """What of loss and gradients is not the model's own; nothing if all is."""
    try:
        theirs = _results(model, more)
    except TypeError as e:
        if "num_items_in_batch" not in str(e):
            raise
        return _refused(model, more)
    w2s_fast.patch(model)
    try:
        ours = _results(model, more)
    finally:
        w2s_fast.unpatch(model)
    return _far(theirs, ours, dtype)


def _refused(model: Any, more: dict[str, Any]) -> str:
    """A keyword that the model's own forward does not have is a W2SError."""
    w2s_fast.patch(model)
    try:
        model(**batch(), **more)
        return f"{next(iter(more))} was accepted"
    except W2SError:
        return ""
    finally:
        w2s_fast.unpatch(model)


def _results(model: Any, more: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    loss = model(**batch(), **more).loss
    loss.backward()
    grads = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().float(), **grads}


def _far(theirs: dict[str, Tensor], ours: dict[str, Tensor], dtype: str) -> str:
    loss, grad = ROOM[dtype]
    there, here = ({n for n, g in one.items() if g.any()} for one in (theirs, ours))
    if missing := sorted(there ^ here):
        return f"gradient of {missing[0]} is there in one of them alone"
    largest = max(float(g.norm()) for n, g in theirs.items() if n != "loss")
    for name, a in theirs.items():
        room = loss * max(abs(float(a)), 1.0) if name == "loss" else None
        if room is None:
            room = grad * float(a.norm()) + 0.1 * grad * largest
        off = float((a - ours.get(name, torch.zeros_like(a))).norm())
        if not off <= room:
            size = float(a.norm())
            return f"{name} is off by {off:.2g} of {size:.3g}"
    return ""


def _line(e: BaseException) -> str:
    """An exception in one line, with where it came from."""
    at = traceback.extract_tb(e.__traceback__)[-1]
    told = " ".join(str(e).split())[:160]
    return f"{type(e).__name__}: {told} ({at.filename.rpartition('/')[2]}:{at.lineno})"
