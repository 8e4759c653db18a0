"""w2s_fast: train one student on given weak labels."""

import json
from pathlib import Path

import numpy as np

from w2s_fast import ModelConfig, TrainConfig, make_loss
from w2s_fast.models import build_model, load_tokenizer
from w2s_fast.tasks import Inputs
from w2s_fast.training import encode, predict, train


def run(job):
    cfg = ModelConfig(job["student"])
    tokenizer = load_tokenizer(cfg)
    model = build_model(cfg, 2, tokenizer, job["seed"])
    model.head.bias.requires_grad_(False)
    rows, encoded = {}, {}
    for split in ("train", "test"):
        rows[split] = [json.loads(line) for line in Path(job[split]).read_text().splitlines()]
        ids = tuple(map(str, range(len(rows[split]))))
        inputs = Inputs(ids, tuple(row["txt"] for row in rows[split]), None, ids)
        encoded[split] = encode(tokenizer, inputs, job["max_length"])
    training = TrainConfig(
        epochs=1,
        batch_size=job["batch_size"],
        micro_batch_size=job["micro_batch_size"],
        lr=job["lr"],
    )
    train(
        model,
        encoded["train"],
        np.array([row["soft_label"] for row in rows["train"]]),
        make_loss(job["loss"]),
        training,
        job["seed"],
        stages=np.arange(len(rows["train"])),
    )
    return predict(model, encoded["test"], job["batch_size"])[:, 1].tolist()
