"""Train in a loop of your own, with the head and its loss as one module.

    python examples/bare_loop.py

Every row has one position that counts, its last token. Only these positions are multiplied with the
head, and their logits are computed in chunks and never stored. Gradients accumulate exactly,
because every loss is divided by the total weight of the whole step.
"""

from typing import Any

import tiny
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from w2s_fast import LMHeadLoss, SparseTargets
from w2s_fast.integrations.batches import WeakLabelCollator


class Student(nn.Module):
    """Wrap a causal language model; its forward returns the summed loss of labelled tokens."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm, self.loss = lm, LMHeadLoss(lm.lm_head, memory_mib=64)

    def forward(self, batch: dict[str, Tensor], aux: float) -> Tensor:
        hidden = self.lm.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
        # The state before a label predicts it: labels are shifted by one.
        row, at = (batch["labels"][:, 1:] != -100).nonzero(as_tuple=True)
        weak = SparseTargets(batch["weak_ids"][row, at + 1], batch["weak_probs"][row, at + 1])
        weight = batch["weak_weight"][row]
        return self.loss(hidden[row, at], weak, weight=weight, aux=aux, reduction="sum")


def main(
    steps: int = 6,
    micro: int = 4,
    accumulate: int = 2,
    aux: float = 0.5,
    adam: Any = torch.optim.AdamW,
) -> Student:
    student = Student(tiny.lm())
    optimizer = adam(student.parameters(), lr=1e-2)
    loader = DataLoader(tiny.rows(), micro, collate_fn=WeakLabelCollator(tiny.tokenizer))
    batches = iter(loader)
    for step in range(steps):
        micro_batches = [next(batches) for _ in range(accumulate)]
        total = sum(batch["weak_weight"].sum() for batch in micro_batches)
        loss = torch.zeros(())
        for batch in micro_batches:
            part = student(batch, aux * min(1, step / steps / 0.1)) / total
            part.backward()
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss:.4f}")
    return student


if __name__ == "__main__":
    main()
