"""What the examples train and on what: nothing is downloaded.

Texts are those of the embedded task, "the keys of the old cabinet" to be answered with "is" or
"are"; the judge knows the answer and is wrong now and then. Put your own model, tokenizer and
``w2s_fast.integrations.batches.read_labels("weak_labels.parquet")`` in their place.
"""

from typing import Any

import numpy as np
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, set_seed

from w2s_fast.integrations.batches import WeakLabels, answer_rows
from w2s_fast.tasks import TaskConfig, get_task
from w2s_fast.tasks.datasets.agreement import tokenizer as make_tokenizer

WORDS = ("is", "are")
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
    "max_steps": 6, "logging_steps": 1, "report_to": [], "save_strategy": "no",
}  # fmt: skip
# TRL trains in bf16 unless told otherwise, and drops the columns that it does not know.
TRL: dict[str, Any] = {"bf16": False, "remove_unused_columns": False}
tokenizer = make_tokenizer()


def lm(seed: int = 0, kind: type = LlamaForCausalLM, **fields: Any) -> Any:
    """A causal language model of random weights."""
    set_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return kind(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ids, **fields))


def classifier(seed: int = 0, num_labels: int = 2) -> Any:
    """The same body with a classification head; one label: a reward model."""
    return lm(seed, LlamaForSequenceClassification, num_labels=num_labels)


def judged(n: int) -> tuple[list[str], WeakLabels]:
    """Texts, and what the judge says of them."""
    config = TaskConfig(n_weak=2, n_transfer=n, n_test=2)
    texts = get_task("agreement").load(config, 0).transfer
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, n) * rng.choice([1, -1], n, p=[0.85, 0.15]) % 1  # of the true answer
    plural = np.where(texts.labels == 1, sure, 1 - sure)
    probs = np.stack([1 - plural, plural], 1).astype(np.float32)
    return list(texts.texts), WeakLabels(texts.ids, probs, rng.uniform(0.5, 1.5, n).astype("f4"))


def rows(n: int = 48) -> list[dict[str, Any]]:
    """Prompts with the judge's probabilities of the two answers, as rows for a collator."""
    return answer_rows(tokenizer, *judged(n), WORDS)


def pairs(n: int = 48) -> list[dict[str, Any]]:
    """Two answers to each prompt, and the judge's probability that the first is the better one."""
    texts, labels = judged(n)
    first, second = (f" {word}" for word in WORDS)
    return [
        {"prompt": text, "chosen": first, "rejected": second, "q": float(q), "weight": float(w)}
        for text, q, w in zip(texts, labels.probs[:, 0], labels.weight, strict=True)
    ]
