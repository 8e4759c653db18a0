"""Step targets in the loop: against a plain loop, micro-batches, resumption, heads, processes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ranks, sharded_training
from helpers.sharded_training import RECIPE, close, fit
from helpers.training_rows import BASE, N, encoded_rows, small_model, soft_labels
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import make_loss
from w2s_fast.probing import CachedHead, CachedRows, HeadRun, train_heads
from w2s_fast.training import (
    CoTeaching,
    SelfTargets,
    StepTargets,
    TrainConfig,
    encode_completions,
    predict,
    train,
)
from w2s_fast.training.co_teaching import Twins
from w2s_fast.training.contrast import Pairs, confident_pairs, pair_sum
from w2s_fast.training.data import Batch, RowOrder
from w2s_fast.training.views import dropped_features, strong_view

D = 12
FEATURES = TrainConfig(epochs=3, batch_size=16, lr=2e-2, schedule="constant")
EVERY = [
    SelfTargets(decay=0.8, share=0.5, ramp=0.5, score="entropy", weigh=True),
    SelfTargets(decay=0.8, share=0.7, final="teacher"),
    SelfTargets(refresh=3, start=0.2, target="sharp", score="entropy", weigh=True,
                threshold=0.001, below="drop", uniform=0.1),
    SelfTargets(target="hard", threshold=0.55, drop=0.3),
    SelfTargets(target="hard", threshold=0.55, drop=0.3, decay=0.5, refresh=2, below="drop"),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

    return agreement_tokenizer()


def _features() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _plain_loop(targets: SelfTargets, weak: Tensor, weight: Tensor) -> tuple[Tensor, list[float]]:
    """A linear head by torch alone: weights of the result, and losses."""
    x, order, cfg = _features(), RowOrder(N, 16, 3, 4), FEATURES
    w, b = torch.zeros(2, D).double().requires_grad_(), torch.zeros(2).double().requires_grad_()
    mean = [p.detach().clone() for p in (w, b)]
    adam = torch.optim.AdamW([w, b], lr=cfg.lr, weight_decay=0.0)
    losses, steps = [], cfg.steps(N)
    for step in range(steps):
        rows = torch.from_numpy(order.rows(step))
        teacher = mean if targets.decay or targets.refresh > 1 else [w.detach(), b.detach()]
        t, v = weak[rows], weight[rows]
        if step / steps >= targets.start:
            z = x[rows] @ teacher[0].T + teacher[1]
            t, v = targets.rows(z, t, v, step / steps)
        seen = x[rows]
        if targets.drop:
            seen = dropped_features(seen, range(len(rows)), targets.drop, 4, step)
        logp = (seen @ w.T + b).log_softmax(1)
        loss = -(v[:, None] * t * logp).sum() / weight[rows].sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
        if (step + 1) % targets.refresh == 0:
            n = (step + 1) // targets.refresh
            kept = min(targets.decay, 1 - 1 / (n + 1))
            mean = [kept * m + (1 - kept) * p.detach() for m, p in zip(mean, (w, b), strict=True)]
    return (mean[0] if targets.final == "teacher" else w.detach()), losses


@pytest.mark.parametrize("targets", EVERY, ids=range(len(EVERY)))
def test_the_loop_and_heads_are_a_plain_loop(targets: SelfTargets) -> None:
    x, weak = _features(), soft_labels().astype(np.float32)
    weight = np.random.default_rng(2).uniform(0.5, 2, N).astype(np.float32)
    want, losses = _plain_loop(
        targets, torch.from_numpy(weak).double(), torch.from_numpy(weight).double()
    )
    model, xent = CachedHead(D, 2).double(), make_loss("xent")
    log = train(model, CachedRows(x), weak, xent, FEATURES, 4, weight=weight, step_targets=targets)
    assert np.allclose(log["losses"], losses, atol=1e-6)
    assert (model.head.weight - want).abs().max() < 1e-6
    run = HeadRun(weak, xent, weight=weight, step_targets=targets)
    heads = train_heads(x, [run], FEATURES, 4)
    assert (heads.weight[0] - model.head.weight).abs().max() < 1e-9
    plain = CachedHead(D, 2).double()
    train(plain, CachedRows(x), weak, xent, FEATURES, 4, weight=weight)
    assert (plain.head.weight - want).abs().max() > 1e-3


@pytest.mark.parametrize("clip", [None, 0.05])
def test_many_heads_are_the_loops_of_each(clip: float | None) -> None:
    """Kinds of targets side by side, several labels and losses, some heads without any."""
    x, soft = _features(), soft_labels()
    hard = np.random.default_rng(3).integers(0, 2, N)
    hard[::7] = -100
    weight = np.random.default_rng(2).uniform(0, 2, N)
    weight[::5] = 0
    cfg = replace(FEATURES, clip_norm=clip, weight_decay=0.1, average_frac=0.3)
    kinds: list[StepTargets | None] = [None, *EVERY, CoTeaching(forget=0.4, ramp=0.3)]
    runs = [
        HeadRun(soft if i % 2 else hard, make_loss(spec), None if i % 3 else 3e-2,
                None if i % 4 else weight, targets)
        for i, (targets, spec) in enumerate(
            (t, s) for t in kinds for s in ("xent", "logconf", "logconf_eleuther")
        )
    ]  # fmt: skip
    together = train_heads(x, runs, cfg, 7)
    assert together.weight.shape == (len(runs), 2, D)
    for h, run in enumerate(runs):
        own = cfg if run.lr is None else replace(cfg, lr=run.lr)
        model: Any = CachedHead(D, 2).double()
        if isinstance(run.step_targets, CoTeaching):
            model = Twins(model, CachedHead(D, 2).double())
        log = train(
            model, CachedRows(x), run.targets, run.loss, own, 7, weight=run.weight,
            step_targets=run.step_targets,
        )  # fmt: skip
        head = model.first.head if isinstance(model, Twins) else model.head
        assert (together.weight[h] - head.weight).abs().max() < 1e-6, run
        assert (together.bias[h] - head.bias).abs().max() < 1e-6, run
        assert np.allclose(together.losses[:, h], log["losses"], atol=1e-6), run
        assert np.allclose(together.agreement[:, h], log["agreement"], atol=1e-6), run


CASES: dict[str, StepTargets] = {
    "mean_teacher": replace(EVERY[0], final="teacher"),
    "sharp": replace(EVERY[2], contrast=2.0),
    "fixmatch": replace(EVERY[4], threshold=0.5001),
}


def _fit(tokenizer: Any, targets: StepTargets, cfg: TrainConfig, **more: Any) -> tuple[Any, Any]:
    model, data = small_model(tokenizer), encoded_rows(tokenizer)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    loss = make_loss("logconf")
    log = train(model, data, soft_labels(), loss, cfg, 3, step_targets=targets, **more)
    return log, predict(model, data)


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_change_nothing(case: str, tokenizer: Any) -> None:
    (whole, want), (parts, got) = (
        _fit(tokenizer, CASES[case], replace(BASE, micro_batch_size=size)) for size in (None, 5)
    )
    assert parts["losses"] == pytest.approx(whole["losses"], rel=2e-4)
    assert np.abs(got - want).max() < 2e-4


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dropout", [False, True])
def test_resume_is_the_straight_run(
    case: str, dropout: bool, tokenizer: Any, tmp_path: Path
) -> None:
    """Stopped in step 5 with a checkpoint at 4: bit for bit, with dropout too."""

    class Killed(Exception):
        pass

    def kill(step: int, *_: Any) -> None:
        if step == 5:
            raise Killed

    cfg = replace(BASE, checkpoint_every=2, micro_batch_size=4, dropout=dropout)
    log, want = _fit(tokenizer, CASES[case], cfg)
    with pytest.raises(Killed):
        _fit(tokenizer, CASES[case], cfg, checkpoint_dir=tmp_path, progress=kill)
    again, got = _fit(tokenizer, CASES[case], cfg, checkpoint_dir=tmp_path)
    assert again["losses"] == log["losses"] and np.array_equal(got, want)
    with pytest.raises(W2SError, match="another training: step_targets was"):
        _fit(tokenizer, SelfTargets(share=0.1), cfg, checkpoint_dir=tmp_path)


def test_pairs_by_hand() -> None:
    """Three confident rows of two classes, one that is not: distances 1/2, 2 and 5/2."""
    h = torch.tensor([[0.0, 0], [1, 0], [0, 2], [9, 9]], dtype=torch.float64)
    classes, used = torch.tensor([0, 0, 1, 1]), torch.tensor([True, True, True, False])
    pairs = Pairs(h, classes, used, classes, used, 2.25, torch.tensor(1.0).double())
    # Same class: 0.25 twice; others: (2.25 - 2)^2 twice, and nothing beyond the margin.
    assert float(pair_sum(h, pairs)) == pytest.approx(2 * 0.25 + 2 * 0.0625)
    assert confident_pairs(used) == 6 and confident_pairs(used & False) == 1


def test_parts_of_pairs_have_the_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    h = torch.randn(7, 5).double().requires_grad_()
    classes, used = torch.arange(7) % 3, torch.arange(7) != 4
    d = (h[:, None] - h[None]).square().sum(2) / 5
    same = classes[:, None] == classes
    rows = torch.where(same, d**2, (1.5 - d).clamp_min(0) ** 2) * used[:, None] * used
    whole = rows.sum() / 30 * 4.0
    (want,) = torch.autograd.grad(whole, h)
    total, parts = 0.0, []
    for own in (slice(0, 2), slice(2, 7)):
        pairs = Pairs(
            h.detach(), classes, used, classes[own], used[own], 1.5, torch.tensor(4 / 30).double()
        )
        x = h.detach()[own].requires_grad_()
        part = pairs.loss(x)
        total += float(part.detach())
        parts += list(torch.autograd.grad(part, x))
    assert total == pytest.approx(float(whole.detach()))
    assert torch.allclose(torch.cat(parts), want, atol=1e-12)


def test_the_contrastive_term_of_a_step(tokenizer: Any) -> None:
    """The first loss has the mean over pairs, times its weight; frozen states leave it out."""
    base = SelfTargets(threshold=0.5001)
    cfg = replace(BASE, epochs=1, batch_size=N)
    data, xent = encoded_rows(tokenizer), make_loss("xent")
    losses = []
    for contrast in (0.0, 3.0):
        model = small_model(tokenizer)
        targets = replace(base, contrast=contrast, margin=0.5)
        log = train(model, data, soft_labels(), xent, cfg, 0, step_targets=targets)
        losses.append(log["losses"][0])
    model, kept = small_model(tokenizer), []
    handle = model.head.register_forward_pre_hook(lambda _, x: kept.append(x[0].detach()))
    p = predict(model, data, batch_size=N)
    handle.remove()
    order = np.argsort(-data.lengths, kind="stable")  # of predicted batches
    h = torch.empty(N, 16)
    h[torch.from_numpy(order)] = torch.cat(kept)
    d = (h[:, None] - h[None]).square().sum(2) / 16
    c, used = p.argmax(1), torch.from_numpy(p.max(1) >= 0.5001)
    same = torch.from_numpy(c[:, None] == c)
    term = torch.where(same, d**2, (0.5 - d).clamp_min(0) ** 2)[used][:, used].sum()
    n = int(used.sum())
    assert n > 5 and losses[1] - losses[0] == pytest.approx(3 * float(term) / n / (n - 1), rel=1e-4)
    for contrast in (0.0, 3.0):
        head = CachedHead(D, 2)
        targets = replace(base, contrast=contrast)
        train(head, CachedRows(_features()), soft_labels(), xent, cfg, 0, step_targets=targets)
        losses.append(head.head.weight.detach())
    assert torch.equal(losses[2], losses[3])


def test_strong_views_drop_tokens() -> None:
    """Kept tokens move together, first and last stay; a view does not depend on its batch."""
    ids = torch.arange(1, 41).view(4, 10)
    mask = (torch.arange(10) < torch.tensor([[10], [7], [1], [2]])).long()
    batch = Batch(ids, mask, ids % 2)
    view = strong_view(batch, [4, 5, 6, 7], 0.5, 3, 2)
    lengths = view.attention_mask.sum(1).tolist()
    assert lengths[2:] == [1, 2] and 2 < lengths[0] < 10 and lengths[1] < 7
    for row, length in enumerate(lengths):
        kept = view.input_ids[row, :length]
        whole = ids[row, : int(mask[row].sum())]
        assert view.attention_mask[row].tolist() == [1] * length + [0] * (10 - length)
        assert kept[0] == whole[0] and kept[-1] == whole[-1]
        assert (kept.diff() > 0).all() and set(kept.tolist()) <= set(whole.tolist())
        assert torch.equal(view.token_type_ids[row, :length], kept % 2)
    short = strong_view(Batch(ids[1:2, :7], mask[1:2, :7], None), [5], 0.5, 3, 2)
    assert torch.equal(short.input_ids[0, : lengths[1]], view.input_ids[1, : lengths[1]])
    assert short.token_type_ids is None
    other = strong_view(batch, [4, 5, 6, 7], 0.5, 3, 3)
    assert not torch.equal(other.input_ids, view.input_ids)
    states = ids[..., None].expand(4, 10, 3).double()
    cached = strong_view(Batch(states, mask, None), [4, 5, 6, 7], 0.5, 3, 2)
    assert torch.equal(cached.input_ids[..., 0], view.input_ids.double())
    # Two candidates of an example have draws of their own.
    pair = strong_view(Batch(ids[:1].repeat(2, 1), mask[:1].repeat(2, 1), None), [4], 0.5, 3, 2)
    assert not torch.equal(pair.input_ids[0], pair.input_ids[1])


def test_dropped_features_are_rescaled() -> None:
    x = torch.ones(200, 50, dtype=torch.bfloat16)
    out = dropped_features(x, range(200), 0.2, 0, 0)
    assert out.dtype == torch.float32
    assert set(out.unique().tolist()) == {0.0, 1.25}
    assert float(out.mean()) == pytest.approx(1, abs=0.02)


def test_dropped_features_do_not_depend_on_the_batch() -> None:
    whole = dropped_features(torch.ones(8, 16), range(8), 0.5, 3, 2)
    part = dropped_features(torch.ones(2, 16), [5, 2], 0.5, 3, 2)
    assert torch.equal(part, whole[[5, 2]]) and not torch.equal(whole[5], whole[2])
    assert not torch.equal(whole, dropped_features(torch.ones(8, 16), range(8), 0.5, 3, 1))
    pair = dropped_features(torch.ones(4, 16), [5, 2], 0.5, 3, 2)  # two candidates of an example
    assert len(pair.unique(dim=0)) == 4
    assert torch.equal(pair[2:], dropped_features(torch.ones(2, 16), [2], 0.5, 3, 2))


def test_rows_without_classes_are_refused(tokenizer: Any) -> None:
    data, labels, xent = encoded_rows(tokenizer), soft_labels(), make_loss("xent")

    def refused(match: str, model: Any, targets: StepTargets | None, rows: Any = data) -> None:
        with pytest.raises(W2SError, match=match):
            train(model, rows, labels, xent, BASE, 0, step_targets=targets)

    model = small_model(tokenizer)
    refused(r"expected Twins\(first, second\)", model, CoTeaching())
    refused("expected one student", Twins(model, small_model(tokenizer)), SelfTargets())
    refused("Twins without step_targets", Twins(model, small_model(tokenizer)), None)
    from w2s_fast.models.classifier import BagOfWords

    texts = encode_completions(tokenizer, ["the old", "a"], [" key", " cat"], end=False)
    with pytest.raises(W2SError, match="need class probabilities.*data are Completions"):
        train(model, texts, texts.labels, xent, BASE, 0, step_targets=SelfTargets())
    refused("contrast=1.0 works on the input", BagOfWords(99, 2), SelfTargets(contrast=1.0))


@pytest.mark.slow
@pytest.mark.dist
def test_any_number_of_processes_and_any_stage(tmp_path: Path) -> None:
    """The teacher's weights are sharded and take the model's place; targets are of all rows."""
    pytest.importorskip("deepspeed")
    recipe = {**RECIPE, "average_frac": 0.0, "epochs": 1}
    cases: list[dict[str, Any]] = [
        {"spec": "xent", "targets": {"decay": 0.7, "share": 0.6, "final": "teacher"}},
        {"spec": "xent", "targets": {"refresh": 2, "target": "sharp", "share": 0.8, "start": 0.2,
                                     "weigh": True, "score": "entropy", "contrast": 2.0}},
        {"spec": "xent", "targets": {"drop": 0.3, "share": 0.9}},
    ]  # fmt: skip
    stages = range(4) if ranks.LONG else (1, 3)
    jobs = [{**recipe, **case, "zero_stage": stage} for case in cases for stage in stages]
    out = tmp_path / "out.json"
    ranks.run(sharded_training.__file__, 2, {"fits": jobs, "out": str(out)})
    for job, got in zip(jobs, json.loads(out.read_text()), strict=True):
        alone = {k: v for k, v in job.items() if k != "zero_stage"}
        close(got, fit(**{**alone, "micro_batch_size": 4}))


@pytest.mark.slow
@pytest.mark.dist
def test_the_teacher_resumes_elsewhere(tmp_path: Path) -> None:
    """Stopped on two processes at ZeRO-3, continued on one."""
    pytest.importorskip("deepspeed")
    job = {**RECIPE, "average_frac": 0.0, "epochs": 1, "spec": "xent",
           "targets": {"decay": 0.7, "share": 0.6, "final": "teacher"}}  # fmt: skip
    stopped = {**job, "zero_stage": 3, "directory": str(tmp_path / "ckpt"), "stop": 3}
    out = tmp_path / "out.json"
    ranks.run(sharded_training.__file__, 2, {"fits": [stopped], "out": str(out)})
    want = fit(**{**job, "micro_batch_size": 4})
    got = fit(**{**job, "micro_batch_size": 2, "directory": str(tmp_path / "ckpt")})
    close(got, want)


class Seen(Exception):
    pass


@dataclass(frozen=True, kw_only=True)
class Look(StepTargets):
    """Ends the training with the logits of the first pass."""

    def rows(
        self, logits: Tensor, weak: Tensor, weight: Tensor, step_frac: float
    ) -> tuple[Tensor, Tensor]:
        raise Seen(logits)


def test_the_first_pass_is_without_dropout(tokenizer: Any) -> None:
    model, data = small_model(tokenizer), encoded_rows(tokenizer)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    want, before = predict(model, data), torch.get_rng_state()
    cfg = replace(BASE, batch_size=N, dropout=True)
    with pytest.raises(Seen) as caught:
        train(model, data, soft_labels(), make_loss("xent"), cfg, 0, step_targets=Look())
    got = caught.value.args[0].softmax(1).numpy()
    assert np.abs(got - want[RowOrder(N, N, 2, 0).rows(0)]).max() < 1e-6
    assert torch.equal(torch.get_rng_state(), before)


def test_the_pass_for_pairs_draws_the_dropout_of_the_training_pass(tokenizer: Any) -> None:
    """A contrastive term of no weight leaves the training as it is."""
    losses = []
    for contrast in (0.0, 1e-12):
        targets = SelfTargets(share=0.5, contrast=contrast)
        cfg = replace(BASE, dropout=True, micro_batch_size=8)
        losses.append(_fit(tokenizer, targets, cfg)[0]["losses"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
