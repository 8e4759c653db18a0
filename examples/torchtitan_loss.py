"""Train a torchtitan model with the weak-to-strong loss, as a ``BaseLoss`` (torchtitan 0.3).

    python examples/torchtitan_loss.py

In a training configuration, ``loss=WeakLoss.Config(aux=0.5)`` takes the place of
``CrossEntropyLoss.Config()``. Labels are then hard weak labels, such as the tokens of a weak model;
soft ones come as the loss inputs ``weak_ids``, ``weak_probs`` and ``weak_weight``. Logits that
tensor parallelism left sharded over the vocabulary are not gathered. Its default backend,
``spmd_types``, passes them as plain tensors and needs ``global_vocab_size``, as torchtitan's own
loss does. Inside ``ChunkedLossWrapper`` a median would be that of a chunk: give a number as
threshold. Whole training runs of torchtitan, and its type checking of placements, are not exercised
here.
"""

from dataclasses import dataclass
from typing import Any

import tiny
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.utils.data import DataLoader
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss
from torchtitan.distributed.spmd_types import current_spmd_mesh, spmd_mesh_size

import w2s_fast
from w2s_fast import W2SError
from w2s_fast.integrations.batches import WeakLabelCollator


class WeakLoss(BaseLoss):
    """Summed over tokens and divided by the valid tokens of the whole step."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        aux: float = 0.5
        threshold: float | str | None = "median"
        global_vocab_size: int | None = None

    def __init__(self, config: Config, *, compile_config: Any = None) -> None:
        # The kernels are compiled ahead of time: there is nothing to compile.
        self.aux, self.threshold = config.aux, config.threshold
        self.global_vocab_size = config.global_vocab_size

    def __call__(
        self,
        pred: Tensor,
        labels: Tensor,
        global_valid_tokens: Tensor | None = None,
        *,
        weak_ids: Tensor | None = None,
        weak_probs: Tensor | None = None,
        weak_weight: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        weak: Any = labels.flatten()
        weight = None if weak_weight is None else weak_weight.flatten()
        if weak_ids is not None:
            weak = w2s_fast.SparseTargets(weak_ids.flatten(0, 1), weak_probs.flatten(0, 1))
            counted = (labels != IGNORE_INDEX).flatten().float()
            weight = counted if weight is None else counted * weight
        loss, stats = w2s_fast.cross_entropy(
            self._rows(pred), weak, weight=weight, aux=self.aux, threshold=self.threshold,
            ignore_index=IGNORE_INDEX, reduction="sum", return_stats=True,
        )  # fmt: skip
        total = stats.count if global_valid_tokens is None else global_valid_tokens
        counted = (labels != IGNORE_INDEX).flatten()
        metrics = {"weak/agreement_mean": (stats.agreement & counted).sum() / total}
        return (loss if global_valid_tokens is None else loss / total), metrics

    def _rows(self, pred: Tensor) -> Tensor:
        """Return (B L, V) logits; a DTensor where each rank holds a part of the vocabulary."""
        mesh = current_spmd_mesh()
        rows = pred.flatten(0, 1)
        if isinstance(pred, DTensor) or mesh is None or spmd_mesh_size("tp") == 1:
            return rows
        if self.global_vocab_size is None:
            raise W2SError(
                "global_vocab_size is None under tensor parallelism; expected the number of "
                "classes: WeakLoss.Config(global_vocab_size=...)"
            )
        shape = torch.Size([rows.shape[0], self.global_vocab_size])
        return DTensor.from_local(
            rows.contiguous(), mesh["tp"], [Shard(1)], shape=shape, stride=(shape[1], 1)
        )


def main(
    steps: int = 6,
    size: int = 8,
    aux: float = 0.5,
    soft: bool = True,
    adam: Any = torch.optim.AdamW,
    loss_config: Any = None,
) -> Any:
    model = tiny.lm()
    optimizer = adam(model.parameters(), lr=1e-2)
    loss_fn = (loss_config or WeakLoss.Config(aux=aux)).build()
    loader = DataLoader(tiny.rows(), size, collate_fn=WeakLabelCollator(tiny.tokenizer))
    for step, batch in zip(range(steps), loader, strict=False):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        # torchtitan's labels are shifted by the data loader.
        pred, labels = model(**inputs).logits[:, :-1], batch["labels"][:, 1:]
        names = ("weak_ids", "weak_probs", "weak_weight") if soft else ()
        weak = {name: batch[name] for name in names}
        weak = {n: x[:, 1:] if x.dim() > 1 else x[:, None].expand(labels.shape)
                for n, x in weak.items()}  # fmt: skip
        loss, metrics = loss_fn(pred, labels, (labels != IGNORE_INDEX).sum(), **weak)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss:.4f}, {metrics}")
    return model


if __name__ == "__main__":
    main()
