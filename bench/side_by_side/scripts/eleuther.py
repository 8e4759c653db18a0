"""EleutherAI/w2s: train one student on given weak labels."""

from datasets import Dataset, DatasetDict, load_from_disk
from transformers import TrainingArguments
from w2s.loss import LOSS_CONFIGS
from w2s.model import ModelConfig
from w2s.sft import train
from w2s.sft_config import SFTConfig


def run(job):
    config = SFTConfig(
        loss=LOSS_CONFIGS[job["loss"]](),
        batch_size=job["batch_size"],
        weight_decay=0,
        load_best_model_at_end=False,
    )
    test = Dataset.from_json(job["test"])
    arguments = TrainingArguments(
        output_dir=job["out"],
        num_train_epochs=1,
        per_device_train_batch_size=job["micro_batch_size"],
        gradient_accumulation_steps=job["batch_size"] // job["micro_batch_size"],
        per_device_eval_batch_size=job["batch_size"],
        learning_rate=job["lr"],
        lr_scheduler_type="cosine",
        max_grad_norm=0,
        seed=job["seed"],
        weight_decay=config.weight_decay,
        save_strategy="no",
        save_total_limit=config.save_total_limit,
        metric_for_best_model=config.metric_for_best_model,
        greater_is_better=config.greater_is_better,
        label_names=["labels"],
        use_cpu=True,
    )
    train(
        DatasetDict({"train": Dataset.from_json(job["train"]), "val": test, "test": test}),
        ModelConfig(job["student"], enable_lora=False),
        arguments,
        config.to_dict(),
        transfer=True,
        predict_dict={"test": test},
    )
    return load_from_disk(f"{job['out']}/predictions/test")["soft_pred"]
