"""Losses that change over training are known as that, whatever their course."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_lms import batch, tiny_lm
from torch import Tensor

import w2s_fast
from w2s_fast import make_loss
from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching import set_progress
from w2s_fast.losses import Loss, LossContext, LossOut
from w2s_fast.losses.logconf import LogConf


@dataclass(frozen=True, kw_only=True)
class Course(LogConf):
    """A confidence loss with a coefficient of anybody's making."""

    of: Callable[[float, Any], float] = lambda frac, step: 0.0

    def coefficient(self, step_frac: float, step: int | None = None) -> float:
        return self.of(step_frac, step)


@dataclass(frozen=True, kw_only=True)
class Smoothed(Loss):
    """A schedule that is no coefficient: smoothing that rises and falls."""

    most: float = 0.3

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        smoothing = self.most * 4 * ctx.step_frac * (1 - ctx.step_frac)
        return self._fused(logits, weak, ctx, smoothing=smoothing)


@dataclass(frozen=True, kw_only=True)
class Window(Loss):
    """A schedule that is no coefficient, in a window that no probe of its value hits."""

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        smoothing = 0.3 if 0.41 <= ctx.step_frac < 0.43 else 0.0
        return self._fused(logits, weak, ctx, smoothing=smoothing)


@dataclass(frozen=True, kw_only=True)
class OfFields(Loss):
    """A schedule that reads the context by field name, in a window of steps."""

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        smoothing = 0.3 if (ctx._asdict()["step"] or 0) == 12345 else 0.0
        return self._fused(logits, weak, ctx, smoothing=smoothing)


@dataclass(frozen=True, kw_only=True)
class PassesOn(Loss):
    """A loss that passes its progress on to one without a schedule."""

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        return make_loss("xent")(
            logits, weak, weight=ctx.weight, step_frac=ctx.step_frac, step=ctx.step
        )


COURSES: dict[str, Callable[[float, Any], float]] = {
    "bow": lambda frac, step: 0.5 * math.sin(math.pi * frac) if 0 < frac < 1 else 0.0,
    "triangle": lambda frac, step: min(frac, 1 - frac),
    "window": lambda frac, step: 0.5 if 0.3 < frac < 0.305 else 0.0,
    "end": lambda frac, step: 0.5 if frac < 1e-3 or frac > 1 - 1e-3 else 0.1,
    "steps": lambda frac, step: 0.5 if 100 <= step < 105 else 0.0,
    "many steps": lambda frac, step: 0.5 if 60_000 <= step < 62_000 else 0.0,
    "cosine": lambda frac, step: 0.25 * (1 - math.cos(8 * math.pi * frac)),
    "both": lambda frac, step: 0.5 if 0.25 < frac < 0.75 and step > 10 else 0.0,
    "table": lambda frac, step: [0.1, 0.1, 0.5, 0.1][step],
}


@pytest.mark.parametrize("name", COURSES)
def test_a_course_of_any_form_must_be_told(name: str) -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1), loss=Course(of=COURSES[name]))
    with pytest.raises(W2SError, match=r"Course changes over training .*set_progress"):
        lm(**batch())
    lm.eval()(**batch())
    set_progress(lm.train(), 0.5, 2)
    lm(**batch()).loss.backward()


@pytest.mark.parametrize(
    "loss",
    [Course(of=lambda frac, step: 0.25), Course(), make_loss("logconf:warmup_frac=0"),
     make_loss("logconf:aux_coef=0"), make_loss("focal"), PassesOn()],
    ids=["constant", "zero", "no warm-up", "aux=0", "focal", "passes on"],
)  # fmt: skip
def test_what_does_not_change_needs_no_progress(loss: Loss) -> None:
    w2s_fast.patch(tiny_lm(num_hidden_layers=1), loss=loss)(**batch())


def test_a_schedule_that_is_no_coefficient() -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1), loss=Smoothed())
    with pytest.raises(W2SError, match="Smoothed changes over training"):
        lm(**batch())
    set_progress(lm, 0.5)
    expected = w2s_fast.patch(tiny_lm(num_hidden_layers=1), loss="smoothing:epsilon=0.3")
    assert lm(**batch()).loss.item() == pytest.approx(expected(**batch()).loss.item(), rel=1e-6)


@pytest.mark.parametrize("loss", [Window(), OfFields(), Smoothed(most=0)])
def test_a_schedule_that_is_found_in_the_code(loss: Loss) -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1), loss=loss)
    with pytest.raises(W2SError, match=f"{type(loss).__name__} changes over training"):
        lm(**batch())
    set_progress(lm, 0.41, 7)
    lm(**batch())


@pytest.mark.slow
@pytest.mark.parametrize("loss", [Course(of=COURSES["triangle"]), Smoothed()], ids=["c", "call"])
def test_compiled_code_follows_the_course(loss: Loss) -> None:
    from torch._dynamo.testing import CompileCounter

    sizes: dict[str, Any] = {"num_hidden_layers": 1, "use_cache": False}
    lm = w2s_fast.patch(tiny_lm(**sizes), loss=loss)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(lm, fullgraph=True, backend=counter)
    seen = []
    for step, step_frac in enumerate((0.1, 0.5)):
        set_progress(lm, step_frac, step)
        seen.append(float(compiled(**batch()).loss.detach()))
        assert seen[-1] == pytest.approx(float(lm(**batch()).loss.detach()), rel=1e-5)
    assert seen[0] != seen[1]
    if isinstance(loss, Course):
        assert counter.frame_count == 1  # a coefficient compiles nothing anew


def test_progress_of_any_type() -> None:
    lm = w2s_fast.patch(tiny_lm(), loss="logconf")
    set_progress(lm, torch.tensor(0.5), np.int64(3))  # type: ignore[arg-type]
    assert (lm._w2s_fast.step_frac, lm._w2s_fast.step) == (0.5, 3)
    for step_frac, step, message in (
        ("half", None, "step_frac is the str 'half'; expected a number"),
        (None, None, "step_frac is the NoneType None"),
        (float("nan"), None, "step_frac is nan; expected a number"),
        ([0.5, float("nan")], None, "step_frac is nan; expected a number"),
        (0.5, -3, "step is -3; expected an integer of at least 0"),
        (-0.1, None, "step_frac is -0.1"),
        (0.5, 2.5, "step is 2.5; expected an integer"),
        (0.5, float("inf"), "step is inf; expected an integer"),
    ):
        with pytest.raises(W2SError, match=message):
            set_progress(lm, step_frac, step)  # type: ignore[arg-type]
    assert (lm._w2s_fast.step_frac, lm._w2s_fast.step) == (0.5, 3)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"weak_frac": 1.5}, "step_frac is 1.5; expected optimizer step / number of steps"),
    ({"weak_frac": float("nan")}, "weak_frac is nan; expected"),
    ({"weak_frac": "half"}, "weak_frac is the str 'half'; expected a number"),
    ({"weak_frac": torch.zeros(0)}, "weak_frac is empty; expected a number"),
    ({"weak_frac": torch.tensor([0.1, 0.2])}, r"weak_frac holds 0.1.* and 0.2.*; expected one"),
    ({"weak_frac": torch.tensor([0.5, float("nan")])}, "weak_frac is nan; expected a number"),
    ({"weak_frac": 0.5, "weak_step": -1}, "weak_step is -1; expected an integer of at least 0"),
    ({"weak_frac": 0.5, "weak_step": 1.5}, "weak_step is 1.5; expected an integer"),
]


@pytest.mark.parametrize(("columns", "message"), BAD, ids=[m[:35] for _, m in BAD])
def test_columns_of_progress(columns: dict[str, Any], message: str) -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1))
    with pytest.raises(W2SError, match=message):
        lm(**batch(), **columns)


@pytest.mark.parametrize("value", [[0.5], (0.5, 0.5), np.float32(0.5), np.full(3, 0.5), 0.5])
def test_progress_in_any_container(value: Any) -> None:
    lm = w2s_fast.patch(tiny_lm(), loss="logconf:warmup_frac=1")
    expected = lm(**batch(), weak_frac=torch.tensor(0.5), weak_step=torch.tensor([7])).loss
    assert torch.equal(lm(**batch(), weak_frac=value, weak_step=np.int64(7)).loss, expected)
    assert (lm._w2s_fast.step_frac, lm._w2s_fast.step) == (0.5, 7)


def test_a_loss_that_counts_steps_is_told_them() -> None:
    """Such a loss is fused with the head, and says what it lacks."""
    lm = w2s_fast.patch(tiny_lm(), loss=Course(of=lambda frac, step: min(0.5, step / 100)))
    with pytest.raises(W2SError, match=r"Course .*step.* set_progress\(model, step_frac, step\)"):
        set_progress(lm, 0.5)
    with pytest.raises(W2SError, match="its progress is not set"):
        lm(**batch())  # what failed was not told
    set_progress(lm, 0.5, 10)
    lm(**batch())
