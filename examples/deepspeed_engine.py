"""Train a patched model in a DeepSpeed engine, at any ZeRO stage.

    deepspeed --num_accelerators 2 examples/deepspeed_engine.py 3

Patch the model before ``initialize``. The loss is computed inside the engine's forward, where a
partitioned head is gathered. The denominator is that of the whole step, over micro-batches and
ranks. The engine averages over both, so each loss is multiplied by their number.
"""

import sys
from typing import Any

import deepspeed
import tiny
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

import w2s_fast
from w2s_fast.integrations.batches import WeakLabelCollator
from w2s_fast.integrations.patching import set_progress


def main(
    zero: int = 3,
    steps: int = 3,
    micro: int = 4,
    accumulate: int = 2,
    spec: str = "logconf:aux_coef=0.5",
    adam: Any = torch.optim.AdamW,
) -> Any:
    deepspeed.init_distributed()
    model = w2s_fast.patch(tiny.lm(), loss=spec)
    config = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": 0.0,  # DeepSpeed clips at 1 by default
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = adam(model.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    rows = tiny.rows(steps * accumulate * micro * dist.get_world_size())
    loader = DataLoader(
        rows, micro, sampler=DistributedSampler(rows, shuffle=False),
        collate_fn=WeakLabelCollator(tiny.tokenizer),
    )  # fmt: skip
    batches = iter(loader)
    for step in range(steps):
        micro_batches = [next(batches) for _ in range(accumulate)]
        n_tokens = sum((b["labels"][:, 1:] != -100).sum() for b in micro_batches).to(engine.device)
        dist.all_reduce(n_tokens)
        set_progress(model, step / steps, step)
        for batch in micro_batches:
            batch = {name: column.to(engine.device) for name, column in batch.items()}
            loss = engine(**batch, num_items_in_batch=n_tokens).loss
            engine.backward(loss * accumulate * dist.get_world_size())
            engine.step()
        if dist.get_rank() == 0:
            print(f"step {step}: loss of this rank's last micro-batch {loss.item():.4f}")
    return engine


if __name__ == "__main__":
    stages = [arg for arg in sys.argv[1:] if not arg.startswith("--")]
    main(*map(int, stages))
