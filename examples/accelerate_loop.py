"""Train a patched model in an accelerate loop, on one device or several.

    python examples/accelerate_loop.py
    torchrun --nproc-per-node 2 examples/accelerate_loop.py   # on CPUs with ACCELERATE_USE_CPU=1

Patch the model before ``prepare``. ``num_items_in_batch`` is the number of labelled tokens of the
whole step, over all micro-batches and processes, so gradients depend on neither.
"""

from contextlib import nullcontext
from typing import Any

import tiny
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import w2s_fast
from w2s_fast.integrations.batches import WeakLabelCollator
from w2s_fast.integrations.patching import set_progress


def main(
    steps: int = 6,
    micro: int = 4,
    accumulate: int = 2,
    spec: str = "logconf:aux_coef=0.5",
    adam: Any = torch.optim.AdamW,
) -> Any:
    accelerator = Accelerator()  # its own accumulation divides by micro-batches, not tokens
    model = w2s_fast.patch(tiny.lm(), loss=spec)
    optimizer = adam(model.parameters(), lr=1e-2)
    rows = tiny.rows(steps * accumulate * micro * accelerator.num_processes)
    loader = DataLoader(rows, micro, collate_fn=WeakLabelCollator(tiny.tokenizer))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    batches = iter(loader)
    for step in range(steps):
        micro_batches = [next(batches) for _ in range(accumulate)]
        n_tokens = sum((batch["labels"][:, 1:] != -100).sum() for batch in micro_batches)
        n_tokens = accelerator.reduce(n_tokens)
        set_progress(model, step / steps, step)
        loss = torch.zeros((), device=accelerator.device)
        for i, batch in enumerate(micro_batches):
            last = i == accumulate - 1
            with nullcontext() if last else accelerator.no_sync(model):
                part = model(**batch, num_items_in_batch=n_tokens).loss
                accelerator.backward(part * accelerator.num_processes)  # DDP averages over ranks
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad()
        accelerator.print(f"step {step}: loss {accelerator.reduce(loss):.4f}")
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    main()
