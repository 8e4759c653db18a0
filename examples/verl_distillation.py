"""Register a weak-to-strong loss for verl's on-policy distillation (0.9), beside its estimators.

    python examples/verl_distillation.py

The weak model is verl's teacher: it scores the tokens that the student sampled. Import this file in
every worker, and set ``distillation.distillation_loss.loss_mode=weak_to_strong`` and
``use_policy_gradient=False``. verl gives a registered loss the log-probabilities of sampled tokens,
not logits, so the self-target is the sampled token:

    L_i = (1 - a_i) k3(student, weak)_i - a_i log p_i,    a_i = AUX where p_i >= the median of p

p_i is the student's probability of token i; the median is exact, over the response tokens of the
micro-batch. k3 is verl's own estimator. The loop below has no rollout engine and no Ray: it calls
verl's ``distillation_loss`` with a batch in verl's format.
"""

from typing import Any

import tiny
import torch
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.distillation.losses import (
    DistillationLossSettings,
    distillation_loss,
    register_distillation_loss,
)
from verl.trainer.ppo.core_algos import kl_penalty
from verl.workers.config import ActorConfig, DistillationConfig, DistillationLossConfig
from verl.workers.utils.padding import no_padding_2_padding

import w2s_fast

AUX = 0.5


@register_distillation_loss(DistillationLossSettings(names=["weak_to_strong"], use_estimator=True))
def weak_to_strong(
    config: ActorConfig,
    distillation_config: DistillationConfig,
    model_output: dict[str, Tensor],
    data: TensorDict,
) -> tuple[Tensor, dict[str, Any]]:
    """Return the losses (B, R) of response tokens, and metrics."""
    student = no_padding_2_padding(model_output["log_probs"], data)
    weak = no_padding_2_padding(data["teacher_logprobs"], data).squeeze(-1)
    mask = data["response_mask"]
    mask = (mask.to_padded_tensor(False) if mask.is_nested else mask).bool()
    p = student.detach().exp()
    median = w2s_fast.quantile(p.flatten(), 0.5, keep=mask.flatten())
    coefficient = AUX * (p >= median)
    losses = (1 - coefficient) * kl_penalty(student, weak, "k3") - coefficient * student
    gated = (coefficient > 0)[mask].float().mean().item()
    return losses, {"distillation/self_target": gated}


def micro_batch(prompts: Tensor, responses: Tensor, weak_logprob: Tensor) -> TensorDict:
    """Return a batch in verl's format of rows without padding."""
    n, length = responses.shape
    jagged = {"prompts": prompts, "responses": responses,
              "response_mask": torch.ones(n, length, dtype=torch.bool)}  # fmt: skip
    rows = {k: torch.nested.as_nested_tensor(list(x), layout=torch.jagged)
            for k, x in jagged.items()}  # fmt: skip
    scores = torch.nested.as_nested_tensor(list(weak_logprob[..., None]), layout=torch.jagged)
    data = TensorDict({**rows, "teacher_logprobs": scores}, batch_size=n)
    data.set_non_tensor("dp_size", 1)
    data.set_non_tensor("batch_num_tokens", n * length)
    data.set_non_tensor("global_batch_size", n)
    return data


def token_logprob(model: Any, ids: Tensor) -> Tensor:
    """Return (B, T) log-probabilities, each at the position that predicts its token, as verl."""
    hidden = model.model(ids).last_hidden_state
    following = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1)
    rows = w2s_fast.linear_logprob(hidden.flatten(0, 1), model.lm_head.weight, following.flatten())
    return rows.view(ids.shape)


def main(
    steps: int = 6, size: int = 4, mode: str = "weak_to_strong", adam: Any = torch.optim.AdamW
) -> Any:
    student, weak = tiny.lm(0), tiny.lm(1).eval()
    optimizer = adam(student.parameters(), lr=1e-2)
    config = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=size)
    loss_config = DistillationLossConfig(loss_mode=mode, use_policy_gradient=False)
    settings = DistillationConfig(distillation_loss=loss_config)
    for step in range(steps):
        prompts = torch.randint(3, len(tiny.tokenizer), (size, 5))
        with torch.no_grad():
            ids = student.generate(
                prompts, do_sample=True, min_new_tokens=6, max_new_tokens=6, top_k=0
            )
            weak_logprob = token_logprob(weak, ids)
        data = micro_batch(prompts, ids[:, 5:], weak_logprob)
        output = {"log_probs": token_logprob(student, ids).flatten()}
        loss, metrics = distillation_loss(config, settings, output, data)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss:.4f}, {metrics.get('distillation/self_target')}")
    return student


if __name__ == "__main__":
    main()
