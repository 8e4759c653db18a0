"""Our runs against the reference recipe, written once more in plain PyTorch from its description.

The script below shares nothing with the package but task, weights and tokenizer: it has its own
batches, head, optimizer, schedule and losses, as openai/weak-to-strong has them (Adam, cosine to
zero, no dropout, batch 32, two epochs, head without bias from zeros, last token, the confidence
loss with its jump). Same data, same student: both must land in the same place up to what another
seed would change.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.tasks import Examples, PretrainConfig, TaskConfig, get_task
from w2s_fast.tasks.datasets import agreement, agreement_lm
from w2s_fast.training import TrainConfig, encode, predict, train

SEEDS, BATCH, EPOCHS, LR = (0, 1, 2, 3, 4), 32, 2, 1e-3
# Long after the sudden change in which agreement is learned: near it, rounding decides.
TASK = TaskConfig(
    n_weak=10, n_transfer=800, n_test=800, pretrain=PretrainConfig(hidden=64, layers=2, steps=700)
)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "lm"
    agreement_lm.pretrain(folder, TASK, 0)
    return folder


def weak_labels(items: Examples, seed: int) -> np.ndarray:
    """Soft labels of a supervisor that is right on four of five rows, and not equally sure."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(items)) < 0.2
    sure = rng.uniform(0.55, 0.95, len(items))
    p1 = np.where((items.labels == 1) ^ wrong, sure, 1 - sure)
    return np.stack([1 - p1, p1], 1).astype(np.float32)


class Reference(nn.Module):
    """The released classifier: hidden state of the last token, a linear head of zeros."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModel

        self.body = AutoModel.from_pretrained(folder)
        self.score = nn.Linear(self.body.config.hidden_size, 2, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.score(hidden[torch.arange(len(ids)), mask.sum(1) - 1])


def released_loss(name: str, logits: Tensor, weak: Tensor, step: int, steps: int) -> Tensor:
    """``xent_loss`` and ``logconf_loss_fn`` of the released code."""
    if name == "xent":
        return nn.functional.cross_entropy(logits, weak)
    frac = step / steps
    coefficient = 0.5 * (1.0 if frac > 0.1 else frac)
    probs = logits.softmax(-1)
    threshold = torch.quantile(probs[:, 0], weak.mean(0)[1])
    first = probs[:, 0] >= threshold
    hard = torch.stack([first, ~first], 1).to(logits.dtype)
    return nn.functional.cross_entropy(
        logits, (weak * (1 - coefficient) + hard * coefficient).detach()
    )


def released(folder: Path, data: tuple[Examples, Examples], loss: str, seed: int) -> float:
    """Accuracy on the test rows after the reference recipe."""
    tokenizer = agreement.tokenizer()
    transfer, test = data
    weak = torch.from_numpy(weak_labels(transfer, seed))
    torch.manual_seed(1000 + seed)
    model = Reference(folder).eval()
    steps = len(transfer) * EPOCHS // BATCH
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def batch(items: Examples, rows: list[int]) -> tuple[Tensor, Tensor]:
        texts = [items.texts[i] for i in rows]
        out = tokenizer(texts, padding=True, return_tensors="pt")
        return out["input_ids"], out["attention_mask"]

    for step in range(steps):
        if step * BATCH % len(transfer) == 0:
            order = torch.randperm(len(transfer)).tolist()
        rows = order[step * BATCH % len(transfer) :][:BATCH]
        logits = model(*batch(transfer, rows))
        released_loss(loss, logits, weak[rows], step, steps).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with torch.no_grad():
        said = [model(*batch(test, list(range(i, i + 100)))) for i in range(0, len(test), 100)]
    return float((torch.cat(said).argmax(1).numpy() == test.labels).mean())


def ours(folder: Path, data: tuple[Examples, Examples], loss: str, seed: int) -> float:
    """The same training by the package."""
    tokenizer = agreement.tokenizer()
    transfer, test = data
    model = build_model(ModelConfig(source=str(folder)), 2, tokenizer, seed)
    recipe = TrainConfig(epochs=EPOCHS, batch_size=BATCH, lr=LR)
    rows = encode(tokenizer, transfer)
    train(model, rows, weak_labels(transfer, seed), make_loss(loss), recipe, seed)
    return float((predict(model, encode(tokenizer, test)).argmax(1) == test.labels).mean())


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["xent", "logconf_openai"])
def test_both_land_in_the_same_place(student: Path, loss: str) -> None:
    rows = []
    for seed in SEEDS:
        data = get_task("agreement").load(TASK, seed)
        pair = (data.transfer, data.test)
        name = "xent" if loss == "xent" else "logconf"
        rows.append((released(student, pair, name, seed), ours(student, pair, loss, seed)))
    theirs, mine = np.array(rows).T
    assert min(theirs.mean(), mine.mean()) > 0.6, "nothing was learned, so nothing is compared"
    noise = math.hypot(theirs.std(ddof=1), mine.std(ddof=1)) / math.sqrt(len(SEEDS))
    assert abs(theirs.mean() - mine.mean()) < 3 * max(noise, 0.005), (theirs, mine)
