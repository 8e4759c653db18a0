"""Policy losses against their papers in fp64 and TRL's trainer, and what all must share."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import w2s_fast
from w2s_fast.errors import W2SError
from w2s_fast.losses.policy import (
    CISPO,
    GRPO,
    GSPO,
    POLICY_LOSSES,
    PPO,
    DrGRPO,
    PolicyLoss,
    PolicyOut,
    group_advantages,
    make_policy_loss,
)
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

FP32, FP64 = torch.float32, torch.float64
B, T = 5, 7
SPECS = {name: f"{name}:max_length={T}" if name == "dr_grpo" else name for name in POLICY_LOSSES}
TERMS = {"kl_coef": 0.3, "entropy_coef": 0.2}


def tokens(seed: int = 0, dtype: torch.dtype = FP32) -> dict[str, Tensor]:
    """One call: ratios on both sides of every clip, sequences of different lengths."""
    g = torch.Generator().manual_seed(seed)
    logp = -3 * torch.rand(B, T, generator=g, dtype=FP64)
    old = logp + 0.5 * torch.randn(B, T, generator=g, dtype=FP64)
    old[0] = logp[0] + 1e-4 * torch.randn(T, generator=g, dtype=FP64)  # within the clip of GSPO
    reference = logp + torch.randn(B, T, generator=g, dtype=FP64)
    entropy = torch.rand(B, T, generator=g, dtype=FP64)
    advantage = torch.randn(B, T, generator=g, dtype=FP64)
    mask = torch.arange(T) < torch.tensor([7, 3, 1, 5, 6])[:, None]
    x = {"logp": logp, "advantage": advantage, "old": old, "reference": reference,
         "entropy": entropy, "weight": torch.rand(B, T, generator=g, dtype=FP64)}  # fmt: skip
    return {**{k: v.to(dtype) for k, v in x.items()}, "mask": mask}


def definition(loss: PolicyLoss, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(sum, normaliser) as printed, by a loop over sequences and tokens."""
    total, count = torch.zeros((), dtype=x["logp"].dtype), torch.zeros((), dtype=x["logp"].dtype)
    for b in range(B):
        at = [t for t in range(T) if x["mask"][b, t]]
        logs = [x["logp"][b, t] - x["old"][b, t] for t in at]
        if isinstance(loss, GSPO):
            logs = [torch.stack(logs).mean()] * len(at)
        for t, log in zip(at, logs, strict=True):
            r, a, w = log.exp(), x["advantage"][b, t], x["weight"][b, t]
            if isinstance(loss, CISPO):
                high = 1 + loss.clip_high
                s = r.detach().clamp(1 - loss.clip_low, high) * a * x["logp"][b, t]
            else:
                s = r * a
                edge = r.clamp(1 - loss.clip_low, 1 + loss.clip_high) * a
                s = edge if edge < s else s
                if a < 0 and r > loss.max_ratio:
                    s = loss.max_ratio * a
            d = x["reference"][b, t] - x["logp"][b, t]
            kl = d.exp() - d - 1
            one = -s + loss.kl_coef * kl - loss.entropy_coef * x["entropy"][b, t]
            if isinstance(loss, DrGRPO):
                total = total + w * one / loss.max_length
            else:
                total = total + w * one / (len(at) if isinstance(loss, GRPO) else 1)
            count = count + w / (len(at) if isinstance(loss, GRPO) else 1)
    return total, count


@pytest.mark.parametrize("name", POLICY_LOSSES)
@pytest.mark.parametrize("fields", ["", "clip_low=0.1,clip_high=0.3", "max_ratio=1.5"])
def test_value_and_gradient_of_the_paper(name: str, fields: str) -> None:
    if name == "cispo" and "max_ratio" in fields:
        pytest.skip("bounds every ratio already")
    spec = f"{SPECS[name]}{',' if ':' in SPECS[name] else ':'}{fields}"
    loss = make_policy_loss(spec + ("," if fields else "") + "kl_coef=0.3,entropy_coef=0.2")
    results = []
    for dtype in (None, FP32, FP64):  # ours, the formula in fp32, the formula in fp64
        x = tokens(dtype=dtype or FP32)
        x["logp"].requires_grad_()
        x["entropy"].requires_grad_()
        if dtype is None:
            out = loss(**x)
            total, count = out.loss_sum, out.count
        else:
            x = {k: v.to(dtype) if k != "mask" else v for k, v in x.items()}
            total, count = definition(loss, x)
        results.append((total, count, *torch.autograd.grad(total, (x["logp"], x["entropy"]))))
    ours, eager, truth = results
    assert_within_budget(ours[0], truth[0], eager[0], FORWARD, "loss")
    assert_within_budget(ours[1], truth[1], eager[1], FORWARD, "count")
    for a, t, b in zip(ours[2:], truth[2:], eager[2:], strict=True):
        assert_within_budget(a, t, b, BACKWARD, "gradient")
    assert not out.count.requires_grad and not any(m.requires_grad for m in out.metrics.values())


def _trl_loss(x: dict[str, Tensor], loss_type: str, level: str, **options: Any) -> Any:
    """Loss and metrics of TRL's trainer, called on a model that returns these log-probabilities."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    mask = x["mask"].to(FP64)
    batch = {
        "prompt_ids": torch.zeros(B, 1), "prompt_mask": torch.ones(B, 1),
        "completion_ids": torch.zeros(B, T), "completion_mask": mask,
        "advantages": x["advantage"][:, 0], "old_per_token_logps": x["old"],
        "ref_per_token_logps": x["reference"], "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    alone = SimpleNamespace(
        gather=lambda t: t, gather_for_metrics=lambda t: t, reduce=lambda t, reduction: t,
        num_processes=1, sync_gradients=False,
    )  # fmt: skip
    self = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (x["logp"], x["entropy"], None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level=level, beta=0.3, epsilon_low=0.2, epsilon_high=0.2,
        loss_type=loss_type, use_vllm=False, vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True), accelerator=alone, max_completion_length=T,
        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
    )  # fmt: skip
    for name, value in options.items():
        setattr(self.args if name == "delta" else self, name, value)
    out = trainer._compute_loss(self, self.model, batch)
    return out, self._metrics["train"]


@pytest.mark.parametrize(
    ("loss", "how"),
    [
        (GRPO(kl_coef=0.3), {"loss_type": "grpo", "level": "token"}),
        (GRPO(kl_coef=0.3, max_ratio=1.6), {"loss_type": "grpo", "level": "token", "delta": 1.6}),
        (DrGRPO(kl_coef=0.3, max_length=T), {"loss_type": "dr_grpo", "level": "token"}),
        (DrGRPO(max_length=9, kl_coef=0.3), {"loss_type": "dr_grpo", "level": "token",
                                             "max_completion_length": 9}),
        (PPO(kl_coef=0.3), {"loss_type": "bnpo", "level": "token"}),
        (PPO(kl_coef=0.3), {"loss_type": "dapo", "level": "token"}),
        (GSPO(kl_coef=0.3, clip_low=0.2, clip_high=0.2), {"loss_type": "grpo",
                                                          "level": "sequence"}),
        (CISPO(kl_coef=0.3, clip_high=0.2), {"loss_type": "cispo", "level": "token",
                                            "epsilon_high": 1.2}),
    ],
    ids=lambda p: type(p).__name__ if isinstance(p, PolicyLoss) else p["loss_type"],
)  # fmt: skip
def test_is_the_loss_of_trl(loss: PolicyLoss, how: dict[str, Any]) -> None:
    x = tokens(1, FP64)
    x["logp"].requires_grad_()
    theirs, their_metrics = _trl_loss(x, **how)
    x.pop("weight")
    out = loss(**{**x, "advantage": x["advantage"][:, 0]})
    mine = out.loss_sum / out.count
    assert float(mine) == pytest.approx(float(theirs), rel=1e-12)
    grads = [torch.autograd.grad(y, x["logp"])[0] for y in (mine, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-13)
    n = float(out.metrics["tokens"])
    assert float(out.metrics["reference_kl"]) / n == pytest.approx(their_metrics["kl"][0])
    if how["level"] == "token" and "clip_ratio/region_mean" in their_metrics and len(how) == 2:
        rate = their_metrics["clip_ratio/region_mean"][0]
        assert 0 < float(out.metrics["clipped"]) / n == pytest.approx(rate)


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_parts_add_up_and_dropped_tokens_do_not_count(name: str) -> None:
    x, loss = tokens(2, FP64), make_policy_loss(SPECS[name])
    x["weight"][3, 1] = 0.0
    dropped = ~x["mask"] | (x["weight"] == 0)
    poisoned = {
        k: v if v.dtype == torch.bool or k == "weight" else torch.where(dropped, math.nan, v)
        for k, v in x.items()
    }
    poisoned["logp"].requires_grad_()
    whole = loss(**poisoned)
    parts: list[PolicyOut] = [
        loss(**{k: v[rows] for k, v in x.items()}) for rows in (slice(0, 2), slice(2, B))
    ]
    assert float(whole.loss_sum.detach()) == pytest.approx(
        sum(float(p.loss_sum) for p in parts), rel=1e-12
    )
    assert float(whole.count) == pytest.approx(sum(float(p.count) for p in parts), rel=1e-12)
    for key in whole.metrics:
        total = sum(float(p.metrics[key]) for p in parts)
        assert float(whole.metrics[key]) == pytest.approx(total, rel=1e-9), key
    (grad,) = torch.autograd.grad(whole.loss_sum, poisoned["logp"])
    assert bool(grad.isfinite().all()) and bool((grad[dropped] == 0).all())
    assert float(whole.metrics["tokens"]) == int((~dropped).sum())


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_without_an_old_policy_the_gradient_is_the_advantage(name: str) -> None:
    x, loss = tokens(3, FP64), make_policy_loss(SPECS[name])
    logp = x["logp"].requires_grad_()
    out = loss(logp, x["advantage"][:, 0], mask=x["mask"])
    (grad,) = torch.autograd.grad(out.loss_sum, logp)
    length = x["mask"].sum(1, keepdim=True)
    scale = {"ppo": 1, "bnpo": 1, "cispo": 1, "dr_grpo": T}.get(name, length)
    expected = torch.where(x["mask"], -x["advantage"][:, :1] / scale, 0.0)
    torch.testing.assert_close(grad, expected)
    assert float(out.metrics["clipped"]) == float(out.metrics["old_kl"]) == 0
    assert float(out.metrics["ratio"]) == float(out.metrics["tokens"]) == int(x["mask"].sum())
    tokens_count = name in ("ppo", "bnpo", "cispo")
    assert float(out.count) == (int(x["mask"].sum()) if tokens_count else B)


@pytest.mark.parametrize("loss", [PPO(), CISPO()])
def test_flat_tokens_are_a_batch_of_tokens(loss: PolicyLoss) -> None:
    x = tokens(4, FP64)
    flat = loss(**{k: v.flatten() for k, v in x.items()})
    whole = loss(**x)
    torch.testing.assert_close(flat.loss_sum, whole.loss_sum)
    torch.testing.assert_close(flat.count, whole.count)


def test_weights_by_sequence() -> None:
    x = tokens(5, FP64)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.25], dtype=FP64)
    one = GRPO()(**{**x, "weight": weight})
    each = GRPO()(**{**x, "weight": weight[:, None].expand(B, T)})
    torch.testing.assert_close(one.loss_sum, each.loss_sum)
    assert float(one.count) == pytest.approx(float(weight.sum()))


def test_metrics() -> None:
    logp, old = torch.log(torch.tensor([0.5, 0.5, 0.5, 0.1])), torch.log(torch.full((4,), 0.25))
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    mask = torch.tensor([1, 1, 0, 1])
    more = {"old": old, "mask": mask}
    for loss, clipped in (
        (PPO(), 2), (PPO(max_ratio=1.5), 3), (CISPO(clip_high=0.5), 2),
        (CISPO(clip_high=0.5, clip_low=0.5), 3),
    ):  # fmt: skip
        out = loss(logp, advantage, **more)
        assert float(out.metrics["clipped"]) == clipped
    assert float(out.metrics["ratio"]) == pytest.approx(2 + 2 + 0.4)
    kl = 2 * (1 - math.log(2)) + (-0.6 - math.log(0.4))
    assert float(out.metrics["old_kl"]) == pytest.approx(kl)
    assert "entropy" not in out.metrics and "reference_kl" not in out.metrics


def test_all_but_log_probabilities_and_entropies_are_constants() -> None:
    x = {k: v.requires_grad_(k != "mask") for k, v in tokens(7).items()}
    out = GRPO(**TERMS)(**x)
    names = ("logp", "entropy", "advantage", "old", "reference", "weight")
    grads = torch.autograd.grad(out.loss_sum, [x[k] for k in names], allow_unused=True)
    assert [g is not None for g in grads] == [True, True, False, False, False, False]


def test_half_precision_is_summed_in_fp32() -> None:
    x = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tokens(6).items()}
    out = PPO()(**x)
    wide = PPO()(**{k: v.float() if v.is_floating_point() else v for k, v in x.items()})
    assert out.loss_sum.dtype == FP32 and torch.equal(out.loss_sum, wide.loss_sum)


def test_group_advantages() -> None:
    rewards = torch.tensor([1.0, 0.0, 1.0, 2.0, 5.0, 5.0], dtype=FP64)
    one, two = rewards[:3], rewards[3:]
    std = {"none": (1.0, 1.0), "group": (one.std() + 1e-4, two.std() + 1e-4),
           "batch": (rewards.std() + 1e-4,) * 2}  # fmt: skip
    for scale, (a, b) in std.items():
        expected = torch.cat([(one - one.mean()) / a, (two - two.mean()) / b])
        torch.testing.assert_close(group_advantages(rewards, 3, scale=scale), expected)
    assert bool((group_advantages(torch.full((4,), 0.1), 2).abs() < 1e-3).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in std:
            assert group_advantages(torch.zeros(0), 2, scale=scale).shape == (0,)
    for args, kw, words in (
        ((rewards, 4), {}, "size is 4 for 6 rewards"),
        ((rewards, 1), {}, "size is 1"),
        ((rewards.view(2, 3), 3), {}, r"rewards have shape \(2, 3\)"),
        ((rewards, 3), {"scale": "std"}, "scale is 'std'; expected one of"),
        ((rewards, 3), {"eps": 0.0}, "eps is 0.0; expected a number above 0"),
        ((torch.full((2,), math.nan), 2), {}, r"rewards\[0\] is nan; expected finite numbers"),
    ):
        with pytest.raises(W2SError, match=words):
            group_advantages(*args, **kw)


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_over_hidden_states_it_is_the_loss_of_full_logits(name: str) -> None:
    loss = make_policy_loss(
        SPECS[name] + ("," if ":" in SPECS[name] else ":") + "kl_coef=0.3,entropy_coef=0.2"
    )
    g = torch.Generator().manual_seed(8)
    hidden, head = (torch.randn(s, generator=g) for s in ((B, T, 8), (29, 8)))
    ids, x = torch.randint(0, 29, (B, T), generator=g), tokens(8)
    given = {k: x[k] for k in ("advantage", "reference", "mask", "weight")}
    results = []
    for dtype in (None, FP32, FP64):
        h, w = (t.to(dtype or FP32, copy=True).requires_grad_() for t in (hidden, head))
        if dtype is None:
            logp, stats = w2s_fast.linear_logprob(
                h.flatten(0, 1), w, ids.flatten(), mask=x["mask"].flatten(),
                memory_mib=9 * 29 * 4 / 2**20, return_stats="differentiable",
            )  # fmt: skip
            logp, entropy = logp.view(B, T), stats.entropy.view(B, T)
        else:
            log_p = (h @ w.t()).log_softmax(-1)
            logp = log_p.gather(-1, ids[..., None])[..., 0]
            entropy = -(log_p.exp() * log_p).sum(-1)
        old = (x["old"] - x["logp"]).to(logp.dtype) + logp.detach()
        total = loss(logp, old=old, entropy=entropy, **given).loss_sum
        results.append((total, *torch.autograd.grad(total, (h, w))))
    for a, b, t in zip(*results, strict=True):
        assert_within_budget(a, t, b, BACKWARD)


def test_bad_input_is_named() -> None:
    x = tokens()
    x.pop("entropy")
    flat = {k: v.flatten() for k, v in x.items()}
    nan = torch.full((B, T), math.nan)
    for loss, change, words in (
        (PPO(), {"advantage": x["advantage"][:, :3]}, r"advantage has shape \(5, 3\); expected"),
        (PPO(), {"advantage": x["advantage"][:4, 0]}, r"advantage has shape \(4,\)"),
        (PPO(), {"advantage": nan}, r"advantage\[0\] is nan; expected finite numbers"),
        (PPO(), {"old": x["old"][0]}, r"old has shape \(7,\)"),
        (PPO(), {"mask": x["mask"][:, 0]}, r"mask has shape \(5,\)"),
        (PPO(), {"weight": -x["weight"]}, r"weight\[0\] is -.*weights of at least 0"),
        (PPO(), {"weight": x["mask"]}, "weight has dtype torch.bool"),
        (PPO(), {"logp": x["mask"]}, "dtype torch.bool; expected floating point"),
        (PPO(), {"logp": x["logp"][None]}, r"logp has shape \(1, 5, 7\)"),
        (PPO(kl_coef=0.1), {"reference": None}, "PPO has kl_coef=0.1 and no reference"),
        (PPO(entropy_coef=0.1), {}, "PPO has entropy_coef=0.1 and no entropy"),
        (DrGRPO(max_length=6), {}, "max_length=6, logp has T = 7"),
        *((make_policy_loss(SPECS[name]), flat, r"\(35,\); \w+ averages over sequences")
          for name in ("grpo", "dr_grpo", "gspo")),
    ):  # fmt: skip
        with pytest.raises(W2SError, match=words):
            loss(**{**x, **change})
    for build, words in (
        (lambda: PPO(clip_low=1.5), r"PPO: clip_low is 1.5; expected a number in \[0, 1\]"),
        (lambda: PPO(clip_high=-0.1), "clip_high is -0.1; expected a number at least 0"),
        (lambda: PPO(max_ratio=1.1), "max_ratio is 1.1; expected a number at least 1.2"),
        (lambda: CISPO(clip_low=-1), "CISPO: clip_low is -1"),
        (lambda: GRPO(kl_coef=-1), "GRPO: kl_coef is -1"),
        (lambda: GRPO(entropy_coef=-1), "GRPO: entropy_coef is -1"),
        (lambda: DrGRPO(max_length=0), "DrGRPO: max_length is 0"),
        (lambda: make_policy_loss("grp"), "unknown policy loss 'grp'.*did you mean 'grpo'"),
        (lambda: make_policy_loss("dr_grpo"), "has no max_length"),
    ):
        with pytest.raises(W2SError, match=words):
            build()
