"""A wrong value is one line that names it, what was expected and the fix, before any number runs.

``CALLS`` has one right call of every public op and loss; each of its arguments is replaced by what
people pass instead. A new public name fails ``test_every_public_call_is_in_the_table``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import w2s_fast
from w2s_fast import SparseTargets, W2SError
from w2s_fast.errors import W2SKeywordError
from w2s_fast.losses import LOSSES, Loss, make_loss
from w2s_fast.losses.distillation import DISTILLATIONS, make_distillation
from w2s_fast.losses.policy import POLICY_LOSSES, group_advantages, make_policy_loss
from w2s_fast.losses.preference import PREFERENCES, Answers, make_preference
from w2s_fast.ops import OPS
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.weak_loss import batch_threshold, weak_loss

N, D, V = 4, 3, 2
Z, H, W, U = torch.randn(N, V), torch.randn(N, D), torch.randn(V, D), -torch.rand(N) - 1
WIDE = torch.randn(5, D)
Y, ONES = torch.tensor([1, 0, 1, 0]), torch.ones(N)
Q = torch.full((N, V), 0.5)
SPARSE = SparseTargets(Y[:, None], torch.full((N, 1), 0.5), torch.full((N,), 0.5))
ANSWERS = Answers(U, U.clone(), torch.full((N,), 3), U.clone())
TERMS = [w2s_fast.TeacherHead(2.0, H, WIDE)]
FUSED = {"memory_mib": 64, "softcap": 0.0}
CE = {"weight": ONES, "aux": 0.5, "smoothing": 0.1, "z_loss": 0.1, "ignore_index": -100,
      "reduction": "mean", "return_stats": False, "softcap": 0.0}  # fmt: skip
NO_CALLS = {
    "ModelConfig", "RunConfig", "SparseTargets", "SupervisorsConfig", "SweepConfig", "TaskConfig",
    "TeacherHead", "TrainConfig",
    "W2SError", "__version__", "make_loss", "patch", "run", "sweep",
    "to_dataframe", "unpatch",
}  # fmt: skip

# name -> (function, its arguments by name)
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "cross_entropy": (
        w2s_fast.cross_entropy, {"logits": Z, "weak": Y, "threshold": 0.5, "inplace": False, **CE}),
    "weak_loss": (
        weak_loss, {"logits": Z, "weak": Y, "rule": "fixed", "threshold": torch.tensor(0.1),
                    "focal_gamma": 1.0, "max_confidence": 0.9, **CE}),
    "batch_threshold": (batch_threshold, {"logits": Z, "weak": Y, "rule": "prior", "weight": ONES}),
    "linear_cross_entropy": (
        w2s_fast.linear_cross_entropy,
        {"hidden": H, "head": WIDE, "weak": Y, "bias": torch.zeros(5), "threshold": 0.5,
         "positions": torch.arange(N), "fp32_head_gradient": True, "memory_mib": 64,
         "main_grad": False, **CE}),
    "linear_cross_entropy teacher": (
        w2s_fast.linear_cross_entropy,
        {"hidden": H, "head": WIDE, "teacher": TERMS, "temperature": 2.0, "divergence": "jsd",
         "beta": 0.3, "weight": ONES}),
    "info_nce": (
        w2s_fast.info_nce,
        {"queries": H, "documents": WIDE, "positives": Y, "temperature": 0.1, "query_groups": Y,
         "document_groups": torch.arange(5), "negatives": "other_groups", "margin": 0.1,
         "negative_mask": torch.ones(N, 5) > 0, "focal_gamma": 0.5, "symmetric": False,
         "normalize": True, "weight": ONES, "reduction": "mean", "memory_mib": 64,
         "return_stats": False}),
    "mix_hard_negatives": (
        w2s_fast.mix_hard_negatives,
        {"queries": H, "negatives": torch.randn(N, 2, D), "rule": "pairs", "count": 1,
         "temperature": 0.1}),
    "topk_logprob": (w2s_fast.topk_logprob, {"logits": Z, "ids": Y[:, None], "temperature": 1.0,
                                             "softcap": 0.0, "return_stats": True}),
    "linear_topk_logprob": (
        w2s_fast.linear_topk_logprob,
        {"hidden": H, "head": W, "ids": Y[:, None], "bias": torch.zeros(V), "temperature": 1.0,
         "return_stats": True, **FUSED}),
    "linear_topk_ids": (
        w2s_fast.linear_topk_ids,
        {"hidden": H, "head": W, "k": 2, "bias": torch.zeros(V), "positions": torch.arange(N),
         "memory_mib": 64}),
    "linear_logprob": (
        w2s_fast.linear_logprob,
        {"hidden": H, "head": W, "tokens": Y, "mask": ONES, "positions": torch.arange(N),
         "bias": torch.zeros(V), "average": False, "return_stats": False, **FUSED}),
    "LMHeadLoss": (
        w2s_fast.LMHeadLoss(torch.nn.Linear(D, V)), {"hidden": H, "weak": Y, "weight": ONES}),
    "balanced_bias": (
        w2s_fast.balanced_bias, {"logits": Z, "prior": torch.ones(V), "keep": ONES > 0}),
    "quantile": (w2s_fast.quantile, {"scores": U, "q": 0.5, "keep": ONES > 0}),
    "kth_value": (w2s_fast.kth_value, {"scores": U, "k": 2, "keep": ONES > 0}),
    "top_fraction_mask": (w2s_fast.top_fraction_mask, {"scores": U, "fraction": 0.5}),
    "pack_topk": (w2s_fast.pack_topk, {"teacher": Z, "k": 1, "temperature": 1.0, "probs": False}),
    # Arguments are looked at before the group.
    "vocab_parallel_cross_entropy": (
        w2s_fast.vocab_parallel_cross_entropy,
        {"hidden": H, "head": W, "weak": Y, "bias": torch.zeros(V), "weight": ONES, **FUSED}),
    "vocab_parallel_logprob": (
        w2s_fast.vocab_parallel_logprob, {"hidden": H, "head": W, "tokens": Y, **FUSED}),
}  # fmt: skip
for _name in LOSSES:
    CALLS[f"loss {_name}"] = (
        make_loss(_name),
        {"logits": Z, "weak": Q, "weight": ONES, "step_frac": 0.1},
    )
CALLS["loss threshold"] = make_loss("logconf").threshold, {"logits": Z, "weak": Q, "weight": ONES}
for _name in PREFERENCES:
    CALLS[f"preference {_name}"] = (
        make_preference(_name),
        {"first": ANSWERS, "second": ANSWERS, "q": 0.5, "weight": ONES}
        | ({"baseline": 0.1} if _name == "kto" else {}),
    )
for _name in POLICY_LOSSES:
    CALLS[f"policy {_name}"] = (
        make_policy_loss(f"{_name}:max_length=1" if _name == "dr_grpo" else _name),
        {"logp": U[:, None], "advantage": U[:, None], "old": U[:, None], "reference": U[:, None],
         "entropy": U[:, None], "mask": ONES[:, None], "weight": ONES},
    )  # fmt: skip
CALLS["group_advantages"] = group_advantages, {"rewards": U, "size": 2, "scale": "group"}
for _name in DISTILLATIONS:
    CALLS[f"distill {_name}"] = (
        make_distillation(_name),
        {"logits": Z, "teacher": SPARSE, "weight": ONES, "softcap": 0.0},
    )
    CALLS[f"distill {_name} linear"] = (
        make_distillation(_name).linear,
        {"hidden": H, "head": W, "teacher": SPARSE, "weight": ONES, **FUSED})  # fmt: skip


def refused(f: Callable[..., Any], arguments: dict[str, Any], what: str = "") -> str:
    """The one line that ``f`` answers with; it names ``what`` and says what was expected."""
    with pytest.raises(W2SError) as error:
        f(**arguments)
    text = str(error.value)
    assert "\n" not in text
    assert what in text, text
    assert "expected" in text or "pass" in text, text
    return text


def test_every_public_call_is_in_the_table() -> None:
    assert set(w2s_fast.__all__) - NO_CALLS <= {name.split()[0] for name in CALLS}
    assert {OPS[name].name for name in OPS} <= CALLS.keys()


@pytest.mark.parametrize("name", [n for n in CALLS if not n.startswith("vocab")])
def test_the_right_calls_pass(name: str) -> None:
    f, arguments = CALLS[name]
    f(**arguments)


def _wrong_for(value: Any) -> list[Any]:
    """What people pass in the place of ``value``."""
    if isinstance(value, SparseTargets | Answers):
        broken = [value._replace(**{field: [0.5] * N}) for field in value._fields]
        return [*broken, value._replace(**{value._fields[0]: 0.5}), [1, 2], 0.5, np.ones(2)]
    if isinstance(value, Tensor):
        return [value.tolist(), value.numpy(), "x", torch.nn.Linear(D, V), object()]
    if isinstance(value, bool):
        return ["yes", Z]
    if isinstance(value, float | int):
        return ["x", float("nan"), [0.5], torch.rand(3), object()]
    if isinstance(value, str):
        return [Z, 3.5, "batchmean", None]
    if value is TERMS:
        return [Z, 0.5, [], [Z], {}, value[0], [value[0]._replace(head=0.5)]]
    raise AssertionError(value)


@pytest.mark.parametrize("name", CALLS)
def test_wrong_types_are_named(name: str) -> None:
    f, arguments = CALLS[name]
    for key, value in arguments.items():
        for wrong in _wrong_for(value):
            if key == "q" and isinstance(wrong, Tensor):
                continue  # one probability a pair, whose shape is told apart
            try:
                refused(f, arguments | {key: wrong}, key if key != "rule" else "")
            except BaseException as e:
                raise AssertionError(f"{name}: {key}={wrong!r}: {type(e).__name__} {e}") from e


@pytest.mark.parametrize("name", CALLS)
def test_numbers_are_no_tensors(name: str) -> None:
    f, arguments = CALLS[name]
    for key, value in arguments.items():
        if isinstance(value, Tensor) and key != "threshold":
            refused(f, arguments | {key: 0.5}, f"{key} is the float 0.5; expected a tensor")
        if isinstance(value, float) and key not in ("aux", "q", "fraction", "baseline"):
            refused(f, arguments | {key: torch.tensor(0.5)}, f"{key} is a tensor of shape ()")


@pytest.mark.parametrize("name", CALLS)
def test_names_of_other_libraries(name: str) -> None:
    f, arguments = CALLS[name]
    with pytest.raises(TypeError) as error:  # W2SKeywordError is one
        f(**arguments, weights=ONES, label_smoothing=0.1)
    assert isinstance(error.value, W2SKeywordError)
    assert "has no argument 'weights'" in str(error.value)
    if "weight" in arguments and name != "LMHeadLoss":
        assert "it is called 'weight' here" in str(error.value)


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("target", "it is called 'weak' here"),
        ("labels", "it is called 'weak' here"),
        ("input", "it is called 'logits' here"),
        ("label_smoothing", "it is called 'smoothing' here"),
        ("weights", "it is called 'weight' here"),
        ("size_average", "pass reduction='mean'"),
        ("wieght", "did you mean 'weight'"),
    ],
)
def test_hints(keyword: str, hint: str) -> None:
    with pytest.raises(W2SKeywordError, match=hint):
        w2s_fast.cross_entropy(Z, Y, **{keyword: Y})
    with pytest.raises(W2SKeywordError, match="takes logits, weak by position but 3 values"):
        w2s_fast.cross_entropy(Z, Y, ONES)  # type: ignore[misc]
    with pytest.raises(W2SKeywordError, match="it is called 'tokens' here"):
        w2s_fast.linear_logprob(H, W, target=Y)  # type: ignore[call-arg]


def test_a_type_error_from_inside_is_left_alone() -> None:
    class Broken(Loss):
        def forward(self, logits: Tensor, weak: Tensor, ctx: Any) -> Any:
            raise TypeError("got an unexpected keyword argument of its own")

    with pytest.raises(TypeError, match="of its own") as error:
        Broken()(Z, Y)
    assert not isinstance(error.value, W2SError)
    with pytest.raises(TypeError, match="missing 1 required"):
        w2s_fast.cross_entropy(Z)  # type: ignore[call-arg]


def test_fixes() -> None:
    linear = torch.nn.Linear(D, V)
    arguments = {"hidden": H, "head": linear, "weak": Y}
    assert ".weight" in refused(w2s_fast.linear_cross_entropy, arguments, "head")
    ce = {"logits": Z, "weak": Y}
    assert "weak.long()" in refused(w2s_fast.cross_entropy, ce | {"weak": Y.float()})
    assert "weak.long()" in refused(w2s_fast.cross_entropy, ce | {"weak": Y.bool()})
    for name in LOSSES:
        loss = make_loss(name)
        assert "weak.long()" in refused(loss, ce | {"weak": Y.float()})
        try:
            loss(Z, SPARSE)
        except W2SError as e:
            assert "weak is SparseTargets" in str(e)
        refused(loss, ce | {"weight": torch.ones(N, 1)}, "weight has shape (4, 1)")
        refused(loss, ce | {"weight": ONES > 0}, "weight has dtype torch.bool")
    for weight, what in ((ONES > 0, "torch.bool"), (torch.ones(3), "(3,)"), (-ONES, "-1")):
        for f in (w2s_fast.cross_entropy, weak_loss):
            refused(f, ce | {"weight": weight}, what)
    assert "torch.tensor" in refused(w2s_fast.cross_entropy, ce | {"weak": [0, 1]})
    assert "as_tensor" in refused(w2s_fast.cross_entropy, ce | {"logits": Z.numpy()})


@pytest.mark.parametrize("aux", [1.5, -0.1, float("nan")])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_coefficients_outside_their_range(aux: float, reduction: str) -> None:
    for value in (aux, torch.tensor(aux)):
        arguments = {"logits": Z, "weak": Y, "aux": value, "reduction": reduction}
        refused(w2s_fast.cross_entropy, arguments, "aux is")
        refused(weak_loss, arguments | {"rule": "prior"}, "aux is")


@pytest.mark.parametrize("value", ["x", torch.tensor(0.1), float("nan"), None, True])
def test_fields_of_losses(value: Any) -> None:
    for table in (LOSSES, PREFERENCES, DISTILLATIONS):
        for kind in table.values():
            for field, known in vars(kind()).items():
                if isinstance(known, float):
                    refused(kind, {field: value}, field)


def test_signatures_and_types_are_kept() -> None:
    for name in ("cross_entropy", "linear_cross_entropy", "quantile"):
        f = getattr(w2s_fast, name)
        assert f.__name__ == name
        assert all(
            p.kind is not inspect.Parameter.VAR_KEYWORD
            for p in inspect.signature(f).parameters.values()
        )
    numpy_scalar: Any = np.float32(0.25)
    loss = w2s_fast.cross_entropy(Z, Y, smoothing=numpy_scalar, aux=0)
    assert torch.equal(loss, w2s_fast.cross_entropy(Z, Y, smoothing=0.25))


def test_subclasses_of_what_is_expected_pass() -> None:
    class Mine(Projected):
        """As patching makes them."""

    for loss in (make_loss("xent"), make_loss("logconf")):
        loss(Mine(H, W), Y)
    weak_loss(Mine(H, W), Y)
