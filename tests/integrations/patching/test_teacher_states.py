"""Teachers from hidden states in a patched model: values, gradients, evaluation, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_lms import B, T, V, batch, tiny_lm
from torch import Tensor

import w2s_fast
from w2s_fast import TeacherHead, W2SError
from w2s_fast.losses.hidden_teacher import HiddenTeacher, TeacherStates
from w2s_fast.ops.fused_linear.teacher.reference import teacher_reference
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

WIDTHS = (6, 10)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


STATES = normal(B, T, sum(WIDTHS), seed=1)
HEADS: list[tuple[Any, ...]] = [
    (1.5, normal(V, WIDTHS[0], seed=2)),
    (-0.5, normal(V, WIDTHS[1], seed=3), normal(V, seed=4), 5.0),
]
WEIGHT = torch.tensor([1.0, 0.5, 2.0])[:B]


def teacher(**fields: Any) -> HiddenTeacher:
    return HiddenTeacher(heads=HEADS, **fields)


def expected(lm: Any, dtype: torch.dtype, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the head from hidden states of the unpatched model, in ``dtype``."""
    inputs = batch()
    labels = inputs.pop("labels")
    with torch.no_grad():
        hidden = lm.base_model(**inputs).last_hidden_state
    rows = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    head = lm.get_output_embeddings().weight.detach().to(dtype, copy=True).requires_grad_()
    parts = STATES[:, :-1][rows].to(dtype).split(WIDTHS, 1)
    terms = [
        TeacherHead(t[0], h, *(x.to(dtype) if isinstance(x, Tensor) else x for x in t[1:]))
        for t, h in zip(HEADS, parts, strict=True)
    ]
    weight, bias = WEIGHT[rows[0]].to(dtype), lm.get_output_embeddings().bias
    options |= {"weight": weight, "bias": None if bias is None else bias.detach().to(dtype)}
    loss = teacher_reference(hidden[:, :-1][rows].to(dtype), head, terms, **options)
    (grad,) = torch.autograd.grad(loss, head)
    return loss.detach(), grad


def tied(lm: Any) -> Any:
    """The head alone is trained, so that its gradient is that of the loss."""
    for p in lm.parameters():
        p.requires_grad_(False)
    lm.get_output_embeddings().weight.requires_grad_()
    return lm


def compare(lm: Any, loss: Tensor, **options: Any) -> None:
    loss.backward()
    weight = lm.get_output_embeddings().weight
    w2s_fast.unpatch(lm)
    truth, eager = (expected(lm, d, **options) for d in (torch.float64, torch.float32))
    assert_within_budget(loss, truth[0], eager[0], FORWARD, "loss")
    assert_within_budget(weight.grad, truth[1], eager[1], BACKWARD, "gradient of the head")


@pytest.mark.parametrize(
    "options",
    [{}, {"divergence": "jsd", "beta": 0.3, "temperature": 2.0}, {"divergence": "reverse_kl"}],
    ids=str,
)
def test_loss_and_gradient(options: dict[str, Any]) -> None:
    lm = tied(tiny_lm(num_hidden_layers=1, tie_word_embeddings=False)).train()
    w2s_fast.patch(lm, loss=teacher(**options), memory_mib=3 * V * 4 / 2**20)
    out = lm(**batch(), weak_states=STATES, weak_weight=WEIGHT)
    assert out.logits is None
    compare(lm, out.loss, **options)


@pytest.mark.parametrize(("name", "softcap"), [("gemma2", 1.5), ("phi", 0.0)])
def test_soft_cap_and_bias_of_the_student(name: str, softcap: float) -> None:
    lm = tied(tiny_lm(name, num_hidden_layers=1, tie_word_embeddings=False)).train()
    w2s_fast.patch(lm, loss=teacher())
    loss = lm(**batch(), weak_states=STATES, weak_weight=WEIGHT).loss
    compare(lm, loss, softcap=softcap)


def test_evaluation_is_the_cross_entropy_of_the_teacher() -> None:
    lm = tied(tiny_lm(num_hidden_layers=1, tie_word_embeddings=False)).eval()
    w2s_fast.patch(lm, loss=teacher(divergence="jsd", temperature=2.0))
    compare(lm, lm(**batch(), weak_states=STATES, weak_weight=WEIGHT).loss, temperature=2.0)
    w2s_fast.patch(lm, loss=teacher())
    plain = lm(**batch()).loss  # labels alone
    w2s_fast.unpatch(lm)
    torch.testing.assert_close(plain, lm(**batch()).loss)


def test_items_of_an_accumulated_batch_divide() -> None:
    lm = tiny_lm(num_hidden_layers=1).train()
    w2s_fast.patch(lm, loss=teacher())
    counted = int((batch()["labels"][:, 1:] != -100).sum())
    mean = lm(**batch(), weak_states=STATES).loss
    twice = lm(**batch(), weak_states=STATES, num_items_in_batch=2 * counted).loss
    torch.testing.assert_close(2 * twice, mean)


def test_compiled() -> None:
    lm = tiny_lm(num_hidden_layers=1).train()
    w2s_fast.patch(lm, loss=teacher())
    eager = lm(**batch(), weak_states=STATES, weak_weight=WEIGHT).loss
    compiled = torch.compile(lm, backend="aot_eager")
    loss = compiled(**batch(), weak_states=STATES, weak_weight=WEIGHT).loss
    torch.compiler.reset()
    torch.testing.assert_close(loss, eager)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"labels": None}, "weak_states came without labels"),
    ({"weak_states": STATES[..., :7]}, "weak_states are 7 wide; expected 16, the widths of the 2"),
    ({"weak_states": STATES[0]}, r"weak_states has shape \(9, 16\).*expected floating"),
    ({"weak_states": STATES.long()}, "dtype torch.int64; expected floating"),
    ({"weak_states": STATES.tolist()}, r"weak_states is a list; expected a tensor \(3, 9, S\)"),
    ({"weak_labels": batch()["labels"]}, "weak_states came with weak_labels"),
    ({"weak_states": None}, "HiddenTeacher takes no hard weak labels; expected states"),
]


@pytest.mark.parametrize(("columns", "message"), BAD, ids=[m[:30] for _, m in BAD])
def test_columns_that_do_not_fit(columns: dict[str, Any], message: str) -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1).train(), loss=teacher())
    with pytest.raises(W2SError, match=message):
        lm(**{**batch(), "weak_states": STATES, **columns})


@pytest.mark.parametrize("training", [True, False])
def test_other_losses_take_no_states(training: bool) -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1).train(training))
    with pytest.raises(W2SError, match="takes no states weak labels; expected hard or dense or sp"):
        lm(**batch(), weak_states=STATES)


def test_a_teacher_that_is_none() -> None:
    for fields, message in (
        ({"heads": []}, "heads are no list of terms"),
        ({"heads": [HEADS[0][1]]}, r"heads\[0\] is Tensor; expected \(scale, head\)"),
        ({"heads": [(1.0, normal(V, seed=0))]}, r"heads\[0\] is tuple; expected \(scale, head\)"),
        ({"heads": HEADS, "divergence": "kl"}, "divergence is 'kl'; expected one of"),
        ({"heads": HEADS, "temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
    ):
        with pytest.raises(W2SError, match=message):
            HiddenTeacher(**fields)
    with pytest.raises(W2SError, match="HiddenTeacher takes hidden states"):
        teacher()(normal(3, V, seed=0), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(W2SError, match="HiddenTeacher takes hidden states"):
        teacher().forward(normal(3, V, seed=0), TeacherStates(STATES[0]), None)
