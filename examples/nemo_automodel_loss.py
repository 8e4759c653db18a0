"""Register the weak-to-strong loss with NeMo Automodel (0.7), on hidden states and the head.

    python examples/nemo_automodel_loss.py

Importing this file adds ``WeakLinearCrossEntropy`` to ``LOSS_CONFIG_REGISTRY``; in a recipe:

    loss_fn:
      _target_: nemo_automodel_loss.WeakLinearCrossEntropy
      aux: 0.5
      threshold: 0.6

It is a ``LinearCrossEntropy``: the recipe passes hidden states and gathers the head, and logits are
made in chunks and never stored. A recipe passes its loss hard labels and row weights only, so the
labels are the tokens of a weak model, and ``loss_weights`` what each is worth. Whole recipes need
accelerators and are not exercised here.
"""

from dataclasses import dataclass
from typing import Any

import tiny
import torch
from nemo_automodel.components.loss import LOSS_CONFIG_REGISTRY
from nemo_automodel.components.loss.linear_ce_base import LinearCrossEntropy
from nemo_automodel.components.loss.loss import LossConfig, build_loss_module
from nemo_automodel.components.loss.utils import calculate_loss
from torch import Tensor, nn
from torch.utils.data import DataLoader

import w2s_fast
from w2s_fast.integrations.batches import WeakLabelCollator


class WeakLinearCrossEntropy(LinearCrossEntropy):
    """Summed over tokens, and divided by the labelled tokens of the whole step where given."""

    def __init__(
        self,
        aux: float = 0.5,
        threshold: float | str | None = None,
        ignore_index: int = -100,
        logit_softcapping: float = 0.0,
        memory_mib: float = 64.0,
    ) -> None:
        super().__init__()
        self.ignore_index, self.reduction = ignore_index, "sum"
        self.options = {
            "aux": aux, "threshold": threshold, "softcap": logit_softcapping,
            "memory_mib": memory_mib,
        }  # fmt: skip

    def forward(
        self,
        hidden_states: Tensor,
        labels: Tensor,
        lm_weight: Tensor,
        num_label_tokens: int | None = None,
        grad_reduce_group: Any = None,
        loss_weights: Tensor | None = None,
    ) -> Tensor:
        head = self.materialize_lm_weight(lm_weight, grad_reduce_group=grad_reduce_group)
        loss = w2s_fast.linear_cross_entropy(
            hidden_states, head, labels, weight=loss_weights, ignore_index=self.ignore_index,
            reduction="sum", **self.options,
        )  # fmt: skip
        # A process without labelled tokens has a loss of 0.
        return loss if num_label_tokens is None else loss / max(num_label_tokens, 1)


@dataclass
class WeakLinearCrossEntropyConfig(LossConfig):
    """Fields of ``WeakLinearCrossEntropy``."""

    aux: float = 0.5
    threshold: float | str | None = None
    ignore_index: int = -100
    logit_softcapping: float = 0.0
    memory_mib: float = 64.0

    def build(self) -> nn.Module:
        return WeakLinearCrossEntropy(**vars(self))


LOSS_CONFIG_REGISTRY["WeakLinearCrossEntropy"] = WeakLinearCrossEntropyConfig


def main(
    steps: int = 6,
    size: int = 8,
    adam: Any = torch.optim.AdamW,
    name: str = "WeakLinearCrossEntropy",
    weighted: bool = False,
    **options: Any,
) -> Any:
    model = tiny.lm()
    optimizer = adam(model.parameters(), lr=1e-2)
    loss_fn = build_loss_module(name, **options)
    loader = DataLoader(tiny.rows(), size, collate_fn=WeakLabelCollator(tiny.tokenizer))
    for step, batch in zip(range(steps), loader, strict=False):
        labels = batch["labels"][:, 1:]  # shifted, as the recipe's collator does
        out = model(
            batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        )
        weights = batch["weak_weight"][:, None].expand(labels.shape) if weighted else None
        loss = calculate_loss(
            loss_fn, model=model, hidden_states=out.hidden_states[-1][:, :-1],
            logits=out.logits[:, :-1].contiguous(), labels=labels.contiguous(),
            num_label_tokens=int((labels != -100).sum()), loss_weights=weights,
        )  # fmt: skip
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss:.4f}")
    return model


if __name__ == "__main__":
    main()
