"""A small causal LM whose student loss is a fused head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import w2s_fast
from w2s_fast.models.lm_head import LMHeadLoss

B, T, V, D = 4, 7, 101, 12  # V and D: no size that a number of ranks divides


def causal_lm(case: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=20, tie_word_embeddings=case == "tied",
        initializer_range=0.3,
    )  # fmt: skip
    lm = LlamaForCausalLM(config).to(dtype)
    if case == "bias":
        lm.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, V, dtype=dtype))
    if case == "frozen_head":
        lm.lm_head.requires_grad_(False)
    if case == "frozen_body":
        lm.model.requires_grad_(False)
    if case == "lora":
        from peft import LoraConfig, get_peft_model

        lm.requires_grad_(False)
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        lm.model = get_peft_model(lm.model, lora)
        lm.to(dtype)
    return lm


class Student(nn.Module):
    """A causal LM whose forward gives the loss, with the fused head or from logits in full."""

    def __init__(self, lm: nn.Module, fused: bool) -> None:
        super().__init__()
        self.lm: Any = lm
        self.loss = LMHeadLoss(lm.lm_head, memory_mib=0.003) if fused else None  # type: ignore

    def forward(self, ids: Tensor, weak: Tensor, aux: float) -> Tensor:
        hidden = self.lm.model(input_ids=ids).last_hidden_state
        options: dict[str, Any] = {"aux": aux, "threshold": "median", "reduction": "sum"}
        if self.loss is not None:
            return self.loss(hidden[:, :-1], weak[:, 1:], **options)
        logits = self.lm.lm_head(hidden[:, :-1]).flatten(0, 1)
        return w2s_fast.cross_entropy(logits, weak[:, 1:].flatten(), **options)


def batch(micro: int, rank: int) -> tuple[Tensor, Tensor]:
    """Ids and weak labels; rank 1 has no labelled position in its first micro-batch."""
    g = torch.Generator().manual_seed(10 * micro + rank)
    ids = torch.randint(V, (B, T), generator=g)
    weak = torch.where(torch.rand(B, T, generator=g) < 0.6, ids.roll(1, 0), -100)
    return ids, torch.full_like(weak, -100) if (micro, rank) == (0, 1) else weak


def unfused(case: str, size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gradients of one process: every micro-batch of every rank, from logits in full."""
    model = Student(causal_lm(case, dtype), fused=False)
    for micro in range(2):
        for rank in range(size):
            model(*batch(micro, rank), 0.5).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
