"""Small language models that sort digits: a student, two weaker generators, and what pairs teach.

All three models are trained on true answers until their accuracy on validation prompts reaches a
target, so their errors are their own. The generators answer new prompts greedily; nothing after
that reads a true answer but the score.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from w2s_fast.losses import make_loss
from w2s_fast.losses.pairwise import make_pair_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.models.text_tokenizer import train_tokenizer
from w2s_fast.preference_pairs import chosen_rows, delta_pairs, reversed_pairs
from w2s_fast.reasoning.rows import Row
from w2s_fast.training import (
    TrainConfig,
    encode_completions,
    encode_pairs,
    generate,
    reference_logprob,
    train,
)

DIGITS = 5
MAX_LENGTH = 32


@dataclass(frozen=True)
class Setting:
    """Hyper-parameters, chosen on bases that the committed rows do not use.

    Attributes:
        student, stronger, weaker: Accuracies at which the trainings of the models end.
        hidden: Width of all models; two layers of four heads.
        pretrain_lr: Learning rate of these trainings, constant.
        n_pretrain: True answers of a training, in batches of 64, each seen once.
        n_prompts: Prompts that the generators answer.
        n_validation, n_test: Prompts that decide when a training ends, and of the scores.
        loss: Preference loss of the pairs.
        pair_lr, sft_lr: Learning rates of pairs and of finetuning on the chosen texts; cosine with
            a warm-up of 3 %, one epoch in batches of 32.
    """

    student: float = 0.8
    stronger: float = 0.6
    weaker: float = 0.3
    hidden: int = 64
    pretrain_lr: float = 1e-3
    n_pretrain: int = 16_000
    n_prompts: int = 2_000
    n_validation: int = 200
    n_test: int = 1_000
    loss: str = "dpo_norm:beta=5"
    pair_lr: float = 1e-5
    sft_lr: float = 1e-4


def make_items(n: int, *seed: int) -> tuple[list[str], list[str]]:
    """Return prompts of digits and their true answers, the digits in order."""
    numbers = np.random.default_rng(seed).integers(0, 10, (n, DIGITS))
    prompts = [" ".join(map(str, row)) + " :" for row in numbers.tolist()]
    return prompts, ["".join(f" {digit}" for digit in sorted(row)) for row in numbers.tolist()]


class Models:
    """The models of one base: its student and its generators."""

    def __init__(self, base: int, setting: Setting) -> None:
        self.setting = setting
        prompts, answers = make_items(2_000, base, 0)
        pairs = zip(prompts, answers, strict=True)
        self.tokenizer = train_tokenizer([prompt + answer for prompt, answer in pairs])
        self.student = self._pretrained(setting.student, base, 0)
        self.stronger = self._pretrained(setting.stronger, base, 1)
        self.weaker = self._pretrained(setting.weaker, base, 2)

    def write(self, model: Any, prompts: Sequence[str]) -> list[str]:
        """Return the greedy answers."""
        return generate(
            model, self.tokenizer, prompts, 2 * DIGITS,
            temperature=0.0, batch_size=500, batch_tokens=100_000,
        )  # fmt: skip

    def accuracy(self, model: Any, prompts: Sequence[str], answers: Sequence[str]) -> float:
        """Return the share of answers that are right as a whole."""
        texts = self.write(model, prompts)
        right = [t.strip() == a.strip() for t, a in zip(texts, answers, strict=True)]
        return float(np.mean(right))

    def learn_pairs(self, rows: Sequence[Row], seed: int) -> Any:
        """Return the student after a preference loss on pairs, itself the reference."""
        columns = ([row[key] for row in rows] for key in ("prompt", "chosen", "rejected"))
        pairs = encode_pairs(self.tokenizer, *columns, MAX_LENGTH)
        pairs = pairs.with_reference(reference_logprob(self.student, pairs))
        model, labels = copy.deepcopy(self.student), np.zeros(len(pairs), dtype=np.int64)
        loss = make_pair_loss(self.setting.loss)
        train(model, pairs, labels, loss, _recipe(self.setting.pair_lr), seed)
        return model

    def learn_texts(self, rows: Sequence[Row], seed: int) -> Any:
        """Return the student after finetuning on the chosen texts alone."""
        columns = ([row[key] for row in chosen_rows(rows)] for key in ("prompt", "answer"))
        data = encode_completions(self.tokenizer, *columns, MAX_LENGTH)
        model = copy.deepcopy(self.student)
        labels = data.labels.astype(np.int64)
        train(model, data, labels, make_loss("xent"), _recipe(self.setting.sft_lr), seed)
        return model

    def _pretrained(self, target: float, base: int, number: int) -> Any:
        """Train a model on true answers until its validation accuracy reaches the target."""
        setting = self.setting
        config = ModelConfig("scratch", hidden=setting.hidden, layers=2, heads=4)
        seed = 10 * base + number
        model = build_model(config, 2, self.tokenizer, seed, kind="generation")
        data = encode_completions(
            self.tokenizer, *make_items(setting.n_pretrain, base, 1, number), MAX_LENGTH
        )
        validation = make_items(setting.n_validation, base, 2)

        class Reached(Exception):
            pass

        def stop(step: int, _steps: int, loss: float) -> None:
            # A mean loss above 2 nats a token is far from any target.
            if step % 2 == 0 and loss < 2.0 and self.accuracy(model, *validation) >= target:
                raise Reached

        cfg = TrainConfig(
            epochs=1, batch_size=64, lr=setting.pretrain_lr, schedule="constant",
            max_length=MAX_LENGTH,
        )  # fmt: skip
        try:
            labels = data.labels.astype(np.int64)
            train(model, data, labels, make_loss("xent"), cfg, seed, progress=stop)
        except Reached:
            return model
        raise RuntimeError(f"base {base}: model {number} does not reach {target} in one epoch")


def _recipe(lr: float) -> TrainConfig:
    return TrainConfig(epochs=1, batch_size=32, lr=lr, warmup_frac=0.03, max_length=MAX_LENGTH)


def measure(models: Models, base: int, seed: int) -> dict[str, Any]:
    """Return the row of one seed: accuracies before and after each kind of training."""
    setting = models.setting
    prompts, answers = make_items(setting.n_prompts, base, 3, seed)
    stronger, weaker = (models.write(m, prompts) for m in (models.stronger, models.weaker))
    found = delta_pairs(range(len(prompts)), prompts, stronger, weaker)
    test = make_items(setting.n_test, base, 4, seed)
    trained = {
        "student": models.student,
        "stronger": models.stronger,
        "weaker": models.weaker,
        "pairs": models.learn_pairs(found.rows, seed),
        "reversed": models.learn_pairs(reversed_pairs(found.rows), seed),
        "chosen": models.learn_texts(found.rows, seed),
    }
    scores = {name: models.accuracy(model, *test) for name, model in trained.items()}
    right = [t.strip() == a.strip() for t, a in zip(stronger, answers, strict=True)]
    counts = {name: len(ids) for name, ids in vars(found.report).items()}
    return {
        "base": base, "seed": seed, **scores, "counts": counts,
        "chosen_right": float(np.mean([right[i] for i in found.report.paired])),
        "setting": asdict(setting),
    }  # fmt: skip
