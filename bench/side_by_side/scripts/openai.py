"""openai/weak-to-strong: train one student on given weak labels."""

from datasets import Dataset
from weak_to_strong import logger
from weak_to_strong.common import get_tokenizer
from weak_to_strong.datasets import tokenize_dataset
from weak_to_strong.loss import logconf_loss_fn, xent_loss
from weak_to_strong.train import ModelConfig, train_and_save_model

LOSSES = {"xent": xent_loss(), "logconf": logconf_loss_fn()}


def run(job):
    tokenizer = get_tokenizer(job["student"])
    train, test = (
        tokenize_dataset(Dataset.from_json(job[split]), tokenizer, job["max_length"])
        for split in ("train", "test")
    )
    logger.configure(save_path=job["out"])
    results, _ = train_and_save_model(
        ModelConfig(job["student"], job["lr"], job["batch_size"]),
        train,
        test,
        batch_size=job["batch_size"],
        minibatch_size_per_device=job["micro_batch_size"],
        lr=job["lr"],
        lr_schedule="cosine_anneal",
        epochs=1,
        loss_fn=LOSSES[job["loss"]],
        save_path=job["out"],
        eval_every=10**6,
    )
    return [row["soft_label"][1] for row in results]
