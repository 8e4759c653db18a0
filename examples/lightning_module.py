"""Train a patched model in a Lightning module.

    python examples/lightning_module.py

Lightning averages the micro-batches of an accumulated step. If each has the same number of labelled
tokens, as here with one per row, this is the loss of the whole batch; otherwise pass your own
``num_items_in_batch`` to the forward.
"""

from typing import Any

import lightning
import tiny
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import w2s_fast
from w2s_fast.integrations.batches import WeakLabelCollator
from w2s_fast.integrations.patching import set_progress


class Student(lightning.LightningModule):
    def __init__(self, lm: Any, spec: str, adam: Any = torch.optim.AdamW) -> None:
        super().__init__()
        self.lm, self.adam = w2s_fast.patch(lm, loss=spec), adam

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        steps = self.trainer.estimated_stepping_batches
        set_progress(self.lm, self.global_step / steps, self.global_step)
        loss = self.lm(**batch).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.adam(self.parameters(), lr=1e-2)


def main(
    micro: int = 4,
    spec: str = "logconf:aux_coef=0.5",
    adam: Any = torch.optim.AdamW,
    **settings: Any,
) -> lightning.Trainer:
    data = DataLoader(tiny.rows(), micro, collate_fn=WeakLabelCollator(tiny.tokenizer))
    args = {"max_steps": 6, "accumulate_grad_batches": 2, "accelerator": "auto"}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = lightning.Trainer(**args | quiet | settings)
    trainer.fit(Student(tiny.lm(), spec, adam), data)
    return trainer


if __name__ == "__main__":
    main()
