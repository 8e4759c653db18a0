"""Tiny models, a tokenizer and weakly labelled rows for the examples; nothing is downloaded.

The texts are those of the embedded task: "the keys of the old cabinet" is completed by "is" or
"are". The judge knows the answer and is sometimes wrong. Replace them with your own model,
tokenizer and ``w2s_fast.integrations.batches.read_labels("weak_labels.parquet")``.
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
# By default, TRL trains in bf16 and drops unknown columns.
TRL: dict[str, Any] = {"bf16": False, "remove_unused_columns": False}
tokenizer = make_tokenizer()


def lm(seed: int = 0, kind: type = LlamaForCausalLM, **fields: Any) -> Any:
    """Build a causal language model with random weights."""
    set_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return kind(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ids, **fields))


def classifier(seed: int = 0, num_labels: int = 2) -> Any:
    """Build the same backbone with a classification head; with one label, a reward model."""
    return lm(seed, LlamaForSequenceClassification, num_labels=num_labels)


def weakly_labelled(n: int) -> tuple[list[str], WeakLabels]:
    """Return texts and the judge's labels for them."""
    config = TaskConfig(n_weak=2, n_transfer=n, n_test=2)
    texts = get_task("agreement").load(config, 0).transfer
    rng = np.random.default_rng(0)
    # Probability of the true answer, below 1/2 in 15 % of the rows.
    sure = rng.uniform(0.5, 1, n) * rng.choice([1, -1], n, p=[0.85, 0.15]) % 1
    plural = np.where(texts.labels == 1, sure, 1 - sure)
    probs = np.stack([1 - plural, plural], 1).astype(np.float32)
    return list(texts.texts), WeakLabels(texts.ids, probs, rng.uniform(0.5, 1.5, n).astype("f4"))


def rows(n: int = 48) -> list[dict[str, Any]]:
    """Return collator rows: prompts with the judge's probabilities of the two answers."""
    return answer_rows(tokenizer, *weakly_labelled(n), WORDS)


def pairs(n: int = 48) -> list[dict[str, Any]]:
    """Return two answers per prompt and the judge's probability that the first is better."""
    texts, labels = weakly_labelled(n)
    first, second = (f" {word}" for word in WORDS)
    return [
        {"prompt": text, "chosen": first, "rejected": second, "q": float(q), "weight": float(w)}
        for text, q, w in zip(texts, labels.probs[:, 0], labels.weight, strict=True)
    ]
