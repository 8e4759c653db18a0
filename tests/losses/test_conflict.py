"""The explicit conflict: formulas of the paper, its code, and the contract of losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ranks, sharded_training
from helpers.loss_cases import case, differentiate
from helpers.sharded_training import close, fit
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import LossContext, make_loss
from w2s_fast.losses.conflict import ExplicitConflict, opposite_classes
from w2s_fast.losses.pairwise import make_pair_loss, split_answers
from w2s_fast.losses.preference import DPO, SimPO
from w2s_fast.testing import assert_fp64

N = 40
GOLD = torch.arange(N) // 3 % 2


def by_hand(z: Tensor, weak: Tensor, gold: Tensor, alpha: float) -> Tensor:
    """Sum of BCE(sigma(d), w) + alpha m BCE(sigma(d), 1 - y), as the paper prints it."""
    d = z[:, 1] - z[:, 0]
    bce = -(weak[:, 1] * F.logsigmoid(d) + weak[:, 0] * F.logsigmoid(-d))
    wrong = torch.where(gold == 1, d < 0, d > 0)
    against = -torch.where(gold == 1, F.logsigmoid(-d), F.logsigmoid(d))
    return (bce + alpha * wrong * against).sum()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_reward_model_is_the_formula_in_fp64(alpha: float) -> None:
    z, weak = case(N, 2, 0)
    loss = ExplicitConflict(alpha=alpha)
    value, gradient = differentiate(lambda x: loss(x, weak, gold=GOLD).loss_sum, z)
    expected, slope = differentiate(lambda x: by_hand(x, weak, GOLD, alpha), z)
    assert_fp64(value, expected)
    assert_fp64(gradient, slope)


def test_it_is_the_released_code_where_that_does_not_saturate() -> None:
    z, weak = case(N, 2, 1)
    d = (z[:, 1] - z[:, 0]).requires_grad_()
    mask = ((d >= 0) != (GOLD == 1)).double()
    target = 1 - GOLD.double()
    released = F.binary_cross_entropy(torch.sigmoid(d), weak[:, 1])
    released = released + 0.5 * F.binary_cross_entropy(torch.sigmoid(d) * mask, target * mask)
    released.backward()
    out, gradient = differentiate(lambda x: ExplicitConflict()(x, weak, gold=GOLD).loss_sum / N, z)
    torch.testing.assert_close(out, released.detach())
    torch.testing.assert_close(gradient[:, 1], d.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_large_logits_keep_their_loss_and_gradient(dtype: torch.dtype) -> None:
    """The student contradicts the true class by 40 nats, or by one in a thousand of that."""
    z = torch.tensor([[0.0, 40.0], [0.04, 0.0]], dtype=dtype, requires_grad=True)
    weak = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    out = ExplicitConflict(alpha=1.0)(z, weak, gold=torch.tensor([0, 1]))
    out.loss_sum.backward()
    assert z.grad is not None
    assert out.loss_sum.item() == pytest.approx(40 + 0.7133 + 0.6733, rel=1e-2)
    assert z.grad[0].tolist() == pytest.approx([-1.0, 1.0], abs=1e-2)  # of the weak label alone


@pytest.mark.parametrize("spec", ["simpo", "dpo", "simpo:beta=2.5,gamma=0.3", "xent@dpo"])
def test_pairs_get_the_preference_loss_in_reverse(spec: str) -> None:
    g = torch.Generator().manual_seed(3)
    length = torch.randint(2, 30, (N, 2), generator=g).double()
    logp = -length * torch.rand(N, 2, generator=g, dtype=torch.float64)
    reference = logp + torch.randn(N, 2, generator=g, dtype=torch.float64)
    answers = torch.stack([logp, reference, length], -1)
    weak = case(N, 2, 4)[1]
    base = make_pair_loss(spec)
    loss = ExplicitConflict(loss=base, alpha=0.5)

    def expected(x: Tensor) -> Tensor:
        first, second = split_answers(x)
        if isinstance(base.preference, SimPO):
            beta, gamma = base.preference.beta, base.preference.gamma
            h = beta * (first.logp / first.length - second.logp / second.length)
        else:
            beta, gamma = DPO().beta, 0.0
            h = beta * (first.logp - first.reference - second.logp + second.reference)
        wrong = torch.where(GOLD == 0, h < 0, h > 0)
        reverse = torch.where(GOLD == 0, F.logsigmoid(-h - gamma), F.logsigmoid(h - gamma))
        plain = base(x, weak).loss_sum
        return plain - 0.5 * (wrong * reverse).sum()

    value, gradient = differentiate(lambda x: loss(x, weak, gold=GOLD).loss_sum, answers)
    wanted, slope = differentiate(expected, answers)
    assert_fp64(value, wanted)
    assert_fp64(gradient[..., 0], slope[..., 0])  # log-probabilities alone are differentiated
    assert loss.preference == base.preference


def test_contradiction_by_hand() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 2.0], [float("nan"), 0.0]])
    gold = torch.tensor([1, 1, 1, -100, 0])
    assert opposite_classes(z, gold).tolist() == [0, -100, -100, -100, -100]


@pytest.mark.parametrize("spec", ["xent", "logconf", "logconf_paper", "entropy_min"])
def test_parts_add_up_to_the_whole(spec: str) -> None:
    """Weights, -100 and the batch threshold of the wrapped loss; one normaliser for all rows."""
    z, weak = case(N, 2, 5)
    loss = ExplicitConflict(loss=make_loss(spec))
    weight = torch.rand(N, dtype=torch.float64) * (torch.arange(N) % 4 > 0)
    gold = torch.where(torch.arange(N) % 5 == 0, -100, GOLD)
    whole = loss(z, weak, weight=weight, gold=gold)
    threshold = loss.threshold(z, weak, weight=weight)
    parts = [slice(0, 7), slice(7, 30), slice(30, N)]
    outs = [loss(z[p], weak[p], weight=weight[p], gold=gold[p], threshold=threshold) for p in parts]
    assert_fp64(torch.stack([out.loss_sum for out in outs]).sum(), whole.loss_sum)
    assert_fp64(torch.stack([out.count for out in outs]).sum(), weight.sum())
    plain = make_loss(spec)(z, weak, weight=weight)
    assert whole.loss_sum > plain.loss_sum  # m is not 0 everywhere
    assert whole.metrics.keys() == plain.metrics.keys()
    none = loss(z, weak, weight=weight, gold=torch.full_like(gold, -100))
    assert_fp64(none.loss_sum, plain.loss_sum)


def test_rows_without_weight_cost_nothing_whatever_they_are() -> None:
    z, weak = case(4, 2, 6)
    z[2] = float("nan")
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0])
    keep = torch.tensor([0, 1, 3])
    value, gradient = differentiate(
        lambda x: ExplicitConflict()(x, weak, weight=weight, gold=GOLD[:4]).loss_sum, z
    )
    rest = ExplicitConflict()(z[keep], weak[keep], gold=GOLD[keep]).loss_sum
    assert_fp64(value, rest)
    assert (gradient[2] == 0).all()


def test_what_does_not_fit_is_named() -> None:
    z, weak = case(N, 2, 8)
    with pytest.raises(W2SError, match="no true classes"):
        ExplicitConflict()(z, weak)
    with pytest.raises(W2SError, match=r"gold has shape \(3,\)"):
        ExplicitConflict()(z, weak, gold=GOLD[:3])
    with pytest.raises(W2SError, match=r"dtype torch.float32; expected \(40,\) integers"):
        ExplicitConflict()(z, weak, gold=GOLD.float())
    with pytest.raises(W2SError, match="needs two classes"):
        ExplicitConflict()(*case(N, 3, 9), gold=GOLD)
    with pytest.raises(W2SError, match="alpha"):
        ExplicitConflict(alpha=-1)
    with pytest.raises(W2SError, match="add the conflict once"):
        ExplicitConflict(loss=ExplicitConflict())
    with pytest.raises(W2SError, match=r"gold\[0\] is 2; expected a class from 0 to 1"):
        train_with(np.full(sharded_training.N, 2))
    with pytest.raises(W2SError, match="expected 43 integers"):
        train_with(np.zeros(3, dtype=np.int64))


def train_with(gold: np.ndarray) -> None:
    from w2s_fast.training import TrainConfig, train

    data, targets, _ = sharded_training.rows()
    loss = ExplicitConflict()
    train(sharded_training.Tiny(), data, targets, loss, TrainConfig(), 0, gold=gold)


def test_training_with_micro_batches_is_that_of_the_whole_batch() -> None:
    want = fit(batch_size=16, conflict=0.7)
    for size in (1, 4):
        close(fit(batch_size=16, micro_batch_size=size, conflict=0.7), want)
    assert fit(batch_size=16)["weights"] != want["weights"]
    assert LossContext().gold is None


def test_the_loop_gives_every_row_its_own_class() -> None:
    from w2s_fast.training import TrainConfig, train

    data, targets, _ = sharded_training.rows()
    gold = np.random.default_rng(0).integers(2, size=len(data))
    model, loss = sharded_training.Tiny().eval(), ExplicitConflict(alpha=3.0)
    with torch.no_grad():
        logits = model(*data.batch(np.arange(len(data)))[:2])
    weak = torch.from_numpy(targets).float()
    out = loss(logits, weak, gold=torch.from_numpy(gold))
    cfg = TrainConfig(epochs=1, batch_size=len(data), micro_batch_size=10)
    log = train(model, data, targets, loss, cfg, seed=5, gold=gold)
    assert log["losses"][0] == pytest.approx(float(out.loss_sum / out.count), rel=1e-5)


@pytest.mark.slow
@pytest.mark.dist
def test_training_on_two_ranks_is_that_of_one_process(tmp_path: object) -> None:
    import json
    from pathlib import Path

    pytest.importorskip("deepspeed")
    jobs = [
        {"zero_stage": z, "micro_batch_size": 2, "batch_size": 8, "conflict": 0.7}
        for z in (0, 1, 2, 3)
    ]
    out = Path(str(tmp_path), "out.json")
    ranks.run(sharded_training.__file__, 2, {"fits": jobs, "out": str(out)})
    want = fit(batch_size=8, conflict=0.7)
    for got in json.loads(out.read_text()):
        close(got, want)


def test_a_training_that_was_stopped_ends_in_the_same_weights(tmp_path: object) -> None:
    fields = {"batch_size": 8, "conflict": 0.7, "checkpoint_every": 2}
    want = fit(**fields)
    assert fit(directory=tmp_path, stop=7, **fields) == {}
    assert fit(directory=tmp_path, **fields)["weights"] == want["weights"]


def test_a_checkpoint_of_other_true_classes_is_refused(tmp_path: object) -> None:
    fields = {"batch_size": 8, "conflict": 0.7, "checkpoint_every": 2, "directory": tmp_path}
    assert fit(stop=7, **fields) == {}
    with pytest.raises(W2SError, match="another training"):
        fit(flipped=True, **fields)
