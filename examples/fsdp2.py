"""Train a patched model with FSDP2, on two ranks or more.

    torchrun --nproc-per-node 2 examples/fsdp2.py

Patch the model, then call ``fully_shard`` on each layer and on the model as usual. Call the model
as a whole: the group that owns the head gathers it. Tied embeddings must stay in one group.
"""

from typing import Any

import tiny
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

import w2s_fast
from w2s_fast.integrations.batches import WeakLabelCollator
from w2s_fast.integrations.patching import set_progress


def main(
    steps: int = 3,
    micro: int = 8,
    spec: str = "logconf:aux_coef=0.5",
    adam: Any = torch.optim.AdamW,
) -> Any:
    if not dist.is_initialized():
        dist.init_process_group()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank())
    model = w2s_fast.patch(tiny.lm().to(device), loss=spec)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = adam(model.parameters(), lr=1e-2)
    rows = tiny.rows(steps * micro * dist.get_world_size())
    loader = DataLoader(
        rows, micro, sampler=DistributedSampler(rows, shuffle=False),
        collate_fn=WeakLabelCollator(tiny.tokenizer),
    )  # fmt: skip
    for step, batch in enumerate(loader):
        batch = {name: column.to(device) for name, column in batch.items()}
        n_tokens = (batch["labels"][:, 1:] != -100).sum()
        dist.all_reduce(n_tokens)
        set_progress(model, step / steps, step)
        loss = model(**batch, num_items_in_batch=n_tokens).loss
        (loss * dist.get_world_size()).backward()  # FSDP averages over ranks
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(total := loss.detach().clone())
        if dist.get_rank() == 0:
            print(f"step {step}: loss {total.item():.4f}")
    return model


if __name__ == "__main__":
    main()
    dist.destroy_process_group()
