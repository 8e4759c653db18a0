"""Weak columns of a batch, and what a patched model refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_lms import B, T, V, batch, tiny_lm
from torch import Tensor, nn

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching import set_progress


def soft(seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, T, V, generator=g).mul(2).softmax(-1)


def log_probs(lm: Any, inputs: dict[str, Tensor]) -> Tensor:
    """(B, T - 1, V) of an unpatched model, for the columns from the second on."""
    plain = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    return lm(**plain).logits[:, :-1].double().log_softmax(-1)


def check(columns: dict[str, Any], rows: Callable[[Tensor], Tensor], weight: Tensor) -> None:
    """Loss of a patched model against sum w_i rows_i / sum w_i, all (B, T - 1)."""
    lm, plain = w2s_fast.patch(tiny_lm()), tiny_lm()
    inputs = batch()
    labels = inputs.pop("labels")
    if columns.pop("marked", False):
        columns["labels"] = labels
    expected = (rows(log_probs(plain, inputs)) * weight).sum() / weight.sum()
    got = lm(**inputs, **columns).loss
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    got.backward()
    expected.backward()
    for (name, a), (_, b) in zip(lm.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5), name


def marked() -> Tensor:
    return (batch()["labels"][:, 1:] != -100).double()


@pytest.mark.parametrize("labels", [True, False])
def test_hard_weak_labels(labels: bool) -> None:
    weak = batch(3)["input_ids"]
    weak[:, 6] = -100
    counts = (weak[:, 1:] != -100).double()
    check(
        {"weak_labels": weak, "marked": labels},
        lambda logp: -logp.gather(2, weak[:, 1:, None].clamp_min(0)).squeeze(2),
        counts * marked() if labels else counts,
    )


@pytest.mark.parametrize("labels", [True, False])
def test_soft_weak_labels(labels: bool) -> None:
    weak = soft()
    if not labels:
        weak[:, 4] = 0  # no mass: the position does not count
    counts = (weak[:, 1:].sum(-1) > 0).double()
    check(
        {"weak_labels": weak, "marked": labels},
        lambda logp: -(weak[:, 1:] * logp).sum(-1),
        marked() if labels else counts,
    )


@pytest.mark.parametrize("rest", [True, False])
def test_sparse_weak_labels(rest: bool) -> None:
    probs, ids = soft().topk(4)
    ids[1, 5] = -1  # padding: no id, the position does not count
    columns = {"weak_ids": ids, "weak_probs": probs}
    left = 1 - probs.sum(-1)
    if rest:
        columns["weak_rest"] = left

    def rows(logp: Tensor) -> Tensor:
        listed = logp.gather(2, ids[:, 1:].clamp_min(0))
        loss = -(probs[:, 1:] * listed).sum(-1)
        others = torch.log1p(-listed.exp().sum(-1))
        return loss - left[:, 1:] * others if rest else loss

    check(columns, rows, (ids[:, 1:] >= 0).any(-1).double())


@pytest.mark.parametrize("shape", [(B,), (B, T)])
def test_row_weights(shape: tuple[int, ...]) -> None:
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    weight[0] = 0
    labels = batch()["labels"]
    each = weight[:, None].expand(B, T) if len(shape) == 1 else weight
    check(
        {"weak_weight": weight, "marked": True},
        lambda logp: -logp.gather(2, labels[:, 1:, None].clamp_min(0)).squeeze(2),
        each[:, 1:].double() * marked(),
    )


def test_num_items_in_batch_divides_weak_columns_too() -> None:
    lm, inputs = w2s_fast.patch(tiny_lm()), batch()
    count = int(marked().sum())
    columns = {"weak_labels": soft(), "weak_weight": torch.full((B,), 0.5)}
    mean = float(lm(**inputs, **columns).loss.detach())
    summed = float(lm(**inputs, **columns, num_items_in_batch=10).loss.detach())
    assert summed == pytest.approx(mean * 0.5 * count / 10, rel=1e-5)


@pytest.mark.parametrize("how", ["told", "column", "tensor"])
def test_self_target_and_its_schedule(how: str) -> None:
    """logconf at 5 % of the training, half of its warm-up: coefficient 0.25."""
    lm, plain = w2s_fast.patch(tiny_lm(), loss="logconf:aux_coef=0.5"), tiny_lm()
    inputs, weak = batch(), soft()
    columns: dict[str, Any] = {}
    if how == "told":
        set_progress(lm, 0.05)
    else:
        columns["weak_frac"] = 0.05 if how == "column" else torch.full((B,), 0.05)
    logp = log_probs(plain, inputs)
    own = F.one_hot(logp.argmax(-1), V)
    rows = -((0.75 * weak[:, 1:] + 0.25 * own) * logp).sum(-1)
    expected = (rows * marked()).sum() / marked().sum()
    got = lm(**inputs, weak_labels=weak, **columns).loss
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    # Evaluation is plain cross-entropy, wherever the training is.
    naive = -(weak[:, 1:] * logp).sum(-1)
    evaluated = lm.eval()(**inputs, weak_labels=weak).loss
    expected = (naive * marked()).sum() / marked().sum()
    assert float(evaluated.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_schedule_without_progress_is_refused() -> None:
    lm = w2s_fast.patch(tiny_lm(), loss="logconf")
    with pytest.raises(W2SError, match=r"LogConf changes .*set_progress"):
        lm(**batch())
    lm.eval()(**batch())
    with pytest.raises(W2SError, match="weak_step came without weak_frac"):
        lm(**batch(), weak_step=3)
    with pytest.raises(W2SError, match="step_frac is 1.5"):
        set_progress(lm, 1.5)
    w2s_fast.patch(tiny_lm(), loss="logconf:warmup_frac=0")(**batch())  # nothing to be told


def sparse(*probs: float) -> dict[str, Tensor]:
    """These probabilities of the first classes at every position, and one of padding."""
    k = len(probs)
    ids = torch.arange(k + 1).where(torch.arange(k + 1) < k, -1)
    return {
        "weak_ids": ids.repeat(B, T, 1),
        "weak_probs": torch.tensor([*probs, 9.0]).repeat(B, T, 1),
    }


def test_mass_may_be_left_out() -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1))
    halves = [lm(**batch(), **sparse(*p)).loss.item() for p in ((0.3, 0.2), (0.6, 0.4))]
    assert 2 * halves[0] == pytest.approx(halves[1], rel=1e-5)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"weak_labels": torch.rand(B, T, V + 1)}, f"68 wide, the vocabulary of the head is {V}"),
    ({"weak_labels": torch.rand(B, T)}, r"weak_labels \(soft\) has shape \(3, 9\)"),
    ({"weak_labels": torch.ones(B, T - 1, dtype=torch.long)}, r"weak_labels \(hard\) has shape"),
    ({"weak_labels": soft(), "weak_probs": soft()}, "weak_labels came with weak_ids"),
    ({"weak_probs": soft()}, "weak_ids is missing"),
    ({"weak_ids": torch.zeros(B, T, 2, dtype=torch.long)}, "weak_probs is missing"),
    ({"weak_ids": soft(), "weak_probs": soft()}, "weak_ids has shape .*float32; expected integ"),
    ({"weak_rest": torch.rand(B, T)}, "weak_rest came without"),
    ({"weak_weight": torch.rand(T)}, r"weak_weight has shape \(9,\); expected \(3,\) or \(3, 9\)"),
    ({"weak_weight": -torch.ones(B)}, r"weight\[0\] is -"),
    ({"weak_labels": soft(), "weak_weight": torch.full((B,), 3e38)}, "weight sums to inf"),
    ({"labels": torch.ones(B, T + 1, dtype=torch.long)}, r"labels has shape \(3, 10\)"),
    ({"labels": torch.full((B, T), V)}, r"67"),
    ({"shift_labels": batch()["labels"], "weak_labels": soft()}, "shift_labels came with weak"),
    ({"logits_to_keep": 1}, "logits_to_keep requests logits"),
    ({"output_logits": True}, "output_logits requests logits"),
    ({"weak_prob": soft()}, "no weak column is called 'weak_prob'.*did you mean 'weak_probs'"),
    ({"weak_weights": None}, "no weak column is called 'weak_weights'"),
    ({"weak_labels": 3 * soft()}, "position 0 sum to 3, .* apply a softmax first"),
    ({"weak_labels": soft() * math.nan}, "position 0 sum to nan"),
    ({"weak_labels": soft().log()}, "the least is -"),
    ({**sparse(0.5, 0.4), "weak_rest": torch.full((B, T), 0.2)}, r"sum to 1\.1,"),
]


@pytest.mark.parametrize(("columns", "message"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_bad_columns(columns: dict[str, Any], message: str) -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1))
    with pytest.raises(W2SError, match=message):
        lm(**{**batch(), **columns})


def test_weights_without_targets() -> None:
    lm, inputs = w2s_fast.patch(tiny_lm()), batch()
    inputs.pop("labels")
    with pytest.raises(W2SError, match="weak_weight .*without targets; .*label_smoothing_factor"):
        lm(**inputs, weak_weight=torch.ones(B))


def test_lists_of_no_classes() -> None:
    none = {"weak_ids": torch.zeros(B, T, 0, dtype=torch.int64), "weak_probs": torch.zeros(B, T, 0)}
    with pytest.raises(W2SError, match=r"weak_ids list no classes \(K = 0\); expected at"):
        w2s_fast.patch(tiny_lm(num_hidden_layers=1))(**batch(), **none)


def test_losses_that_need_logits() -> None:
    for loss in ("reverse_ce", "reverse_kl", "entropy_min"):
        with pytest.raises(W2SError, match="needs logits; expected a loss that is fused"):
            w2s_fast.patch(tiny_lm(), loss=loss)
    lm = w2s_fast.patch(tiny_lm(), loss="product")  # of a hard label its own product
    lm(**batch())
    with pytest.raises(W2SError, match="Product takes no dense weak labels; expected hard"):
        lm(**batch(), weak_labels=soft())


def test_patched_twice() -> None:
    lm = w2s_fast.patch(tiny_lm())
    with pytest.raises(W2SError, match="patched already; unpatch"):
        w2s_fast.patch(lm)
    w2s_fast.patch(w2s_fast.unpatch(lm))
    lm.forward = torch.no_grad()(lm.forward)  # as accelerate does
    with pytest.raises(W2SError, match=r"wrapped by torch\.utils\S+ after patch"):
        w2s_fast.unpatch(lm)


def test_patched_by_someone_else(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    lm.forward = lambda *args, **kwargs: None
    with pytest.raises(W2SError, match=r"replaced by \S*test_columns; load"):
        w2s_fast.patch(lm)
    assert not hasattr(lm.lm_head, "_w2s_head")
    lm = tiny_lm()
    lm.lm_head.forward = lambda x: x
    with pytest.raises(W2SError, match="forward of the head of this LlamaForCausalLM was replaced"):
        w2s_fast.patch(lm)
    monkeypatch.setattr(type(lm), "forward", lambda *args, **kwargs: None)
    with pytest.raises(W2SError, match=r"LlamaForCausalLM was replaced by \S*test_col"):
        w2s_fast.patch(tiny_lm())


def test_patched_by_liger(monkeypatch: pytest.MonkeyPatch) -> None:
    liger = pytest.importorskip("liger_kernel.transformers")
    off = dict.fromkeys(("rope", "swiglu", "rms_norm", "cross_entropy"), False)
    with pytest.raises(W2SError, match=r"replaced by liger_kernel\.transformers"):
        lm = tiny_lm()
        liger.apply_liger_kernel_to_llama(**off, fused_linear_cross_entropy=True, model=lm)
        w2s_fast.patch(lm)
    plain = type(lm).forward
    monkeypatch.setattr(type(lm), "forward", plain)  # put back what the next line replaces
    liger.apply_liger_kernel_to_llama(**off, fused_linear_cross_entropy=True)
    with pytest.raises(W2SError, match=r"replaced by liger_kernel\.transformers"):
        w2s_fast.patch(tiny_lm())


def test_models_that_are_more_than_body_and_head() -> None:
    class Normalised(type(tiny_lm())):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.softmax(-1)
            return out

    lm = tiny_lm()
    other = Normalised(lm.config)
    with pytest.raises(W2SError, match="does 'softmax' with its logits"):
        w2s_fast.patch(other)
    assert "forward" not in other.__dict__ and "forward" not in other.lm_head.__dict__
    for model in (nn.Linear(2, 2), nn.DataParallel(lm)):
        with pytest.raises(W2SError, match="expected a causal LM of transformers"):
            w2s_fast.patch(model)
    with pytest.raises(W2SError, match=r"LlamaModel is not a backbone .* such as LlamaForCausalLM"):
        w2s_fast.patch(lm.model)
    lm.lm_head = nn.Sequential(lm.lm_head)
    with pytest.raises(W2SError, match=r"head of LlamaForCausalLM is a Sequential"):
        w2s_fast.patch(lm)


def test_a_head_that_was_replaced() -> None:
    lm = w2s_fast.patch(tiny_lm())
    lm.lm_head = nn.Linear(16, V, bias=False)
    with pytest.raises(W2SError, match="not the one that was patched"):
        lm(**batch())


def test_weights_on_the_meta_device() -> None:
    with torch.device("meta"):
        lm = tiny_lm()
    w2s_fast.patch(lm)  # nothing to compare yet
    lm.to_empty(device="cpu").load_state_dict(tiny_lm().state_dict(), strict=False)
    lm.model.rotary_emb = tiny_lm().model.rotary_emb
    assert float(lm(**batch()).loss.detach()) == pytest.approx(
        float(tiny_lm()(**batch()).loss.detach()), rel=1e-6
    )
