"""What every code base is given: the same student, rows in the same order, and weak labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.models import ModelConfig
from w2s_fast.tasks import EMBEDDED, TaskConfig, get_task
from w2s_fast.training import TrainConfig

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Setting:
    """The training that every code base repeats, and the data.

    Attributes:
        name: Name in the rows.
        data: "agreement", or "sst2" for a file of texts and labels.
        losses: Names in the two other code bases.
        n_weak, n_transfer, n_test: Rows of the splits.
        epochs: Passes over the transfer rows, each in its own order.
        batch_size: Rows of an optimizer step.
        micro_batch_size: Rows of a forward and backward.
        lr: Peak learning rate of Adam, without weight decay; it falls to 0 along a cosine.
        max_length: Tokens; no row has as many.
        threads: Of torch.
    """

    name: str = "agreement"
    data: str = "agreement"
    losses: tuple[str, ...] = ("xent", "logconf")
    n_weak: int = 400
    n_transfer: int = 2400
    n_test: int = 1000
    epochs: int = 2
    batch_size: int = 32
    micro_batch_size: int = 32
    lr: float = 1e-4
    max_length: int = 128
    threads: int = 1

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps."""
        return self.n_transfer * self.epochs // self.batch_size


AGREEMENT = Setting()
MICRO_BATCHES = Setting("micro_batches", losses=("logconf",), micro_batch_size=8)
SST2 = Setting(
    "sst2", "sst2", losses=("xent",), n_transfer=64, n_test=64, epochs=1, batch_size=8,
    micro_batch_size=8, lr=2e-5,
)  # fmt: skip


def quick(setting: Setting) -> Setting:
    """Return the setting at toy size."""
    n = 6 * setting.batch_size
    return replace(setting, n_weak=64, n_transfer=n, n_test=32, epochs=1)


def task(setting: Setting, file: Path | None) -> RunConfig:
    """Return the configuration that labels the transfer rows; ``file`` has the rows of sst2."""
    sizes = {name: getattr(setting, name) for name in ("n_weak", "n_transfer", "n_test")}
    if setting.data == "agreement":
        return RunConfig(task=TaskConfig(**sizes))
    columns = {"text": "0", "label": "1"}
    return RunConfig(
        task=TaskConfig("local", str(file), **columns, **sizes),
        weak=ModelConfig("bow"),
        student=ModelConfig("bow"),  # not trained: only labels are computed
        weak_train=TrainConfig(epochs=10, lr=0.1, max_length=setting.max_length),
    )


def pretrained(out: Path, quick: bool) -> Path:
    """Return the folder of the embedded task's language model, which is made once."""
    folder = out / ("quick-lm" if quick else "agreement-lm")
    cfg = TaskConfig()
    if quick:
        cfg = EMBEDDED["agreement-lm"].with_settings(cfg, steps=5, hidden=16, layers=1)
    if not (folder / WEIGHTS).exists():
        EMBEDDED["agreement-lm"].pretrain(folder, cfg, 0)
    return folder


def portable_student(source: Path, target: Path) -> Path:
    """Copy a Llama checkpoint so that transformers 4 and 5 load it as the same model.

    A head of zeros is added under the name ``score.weight``. EleutherAI/w2s reads it; the two other
    code bases make their own head, of zeros too. So all begin with the same weights.

    Raises:
        W2SError: The checkpoint is no Llama in one safetensors file with plain rotary positions.
    """
    from safetensors.torch import load_file, save_file

    config = _json(source / "config.json")
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default")
    if config.get("model_type") != "llama" or kind != "default" or config.get("rope_scaling"):
        raise W2SError(
            f"{source} is a model of type {config.get('model_type')!r} with rotary positions "
            f"{kind!r}; expected 'llama' and 'default', which all code bases take"
        )
    if not (source / WEIGHTS).is_file():
        raise W2SError(f"{source} has no {WEIGHTS}; expected the weights in one file")
    import torch

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.bin"))
    # EleutherAI/w2s would keep a lower precision, the two others would not.
    weights = {name: t.float() for name, t in load_file(source / WEIGHTS).items()}
    weights["score.weight"] = torch.zeros(2, config["hidden_size"])
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
    theta = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    pad = config.get("pad_token_id")
    fp32 = dict.fromkeys(("dtype", "torch_dtype"), "float32")
    padding = {"pad_token_id": 0 if pad is None else pad}
    _write(target / "config.json", {**config, **theta, **fp32, **padding})
    # transformers 5 names a class that transformers 4 does not have.
    tokenizer = _json(source / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write(target / "tokenizer_config.json", tokenizer)
    return target


def write_rows(setting: Setting, seeds: Iterable[int], file: Path | None, out: Path) -> None:
    """Label the transfer rows of every seed and write them, and the test rows, as JSON lines.

    ``out/SEED/train.jsonl`` has the rows of all epochs in the order in which they are read. Its
    columns are those of the code bases: ``txt``, ``soft_label`` and, EleutherAI's, ``labels``, the
    second entry of ``soft_label``. In ``test.jsonl`` they are the true labels.
    """
    from w2s_fast.integrations.batches.weak_labels import read_labels
    from w2s_fast.pipeline import label
    from w2s_fast.training.data import epoch_order

    seeds = tuple(seeds)
    cfg = replace(task(setting, file), seeds=seeds, output_dir=str(out / "labels"), device="cpu")
    for seed, folder in label(cfg).items():
        data = get_task(cfg.task.name).load(cfg.task, seed)
        weak = read_labels(folder, data.transfer.ids).probs
        rows = np.concatenate([
            epoch_order(setting.n_transfer, seed, epoch) for epoch in range(setting.epochs)
        ])  # fmt: skip
        own = out / str(seed)
        own.mkdir(parents=True, exist_ok=True)
        _write_lines(own / "train.jsonl", ((data.transfer.texts[i], weak[i][1]) for i in rows))
        _write_lines(own / "test.jsonl", zip(data.test.texts, data.test.labels, strict=True))


def job(
    setting: Setting, system: str, loss: str, seed: int, student: Path, out: Path
) -> dict[str, Any]:
    """Return the job of a worker; its files are under ``out``."""
    own = out / str(seed)
    return {
        "system": system, "loss": loss, "seed": seed, "student": str(student.absolute()),
        "train": str((own / "train.jsonl").absolute()),
        "test": str((own / "test.jsonl").absolute()),
        "out": str((own / f"{system}-{loss}").absolute()),
        **{name: getattr(setting, name) for name in
           ("batch_size", "micro_batch_size", "lr", "max_length", "threads")},
    }  # fmt: skip


def _write_lines(path: Path, rows: Iterable[tuple[str, Any]]) -> None:
    # Probabilities are rounded to fp32, and the first is 1 - the second in fp32: every code base
    # then has the same numbers, however it makes one from the other.
    with path.open("w") as out:
        for text, one in rows:
            p = np.float32(one)
            pair = [float(np.float32(1) - p), float(p)]
            line = {"txt": text, "soft_label": pair, "labels": pair[1], "hard_label": int(p > 0.5)}
            out.write(json.dumps(line) + "\n")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise W2SError(f"{path} cannot be read ({e}); expected the folder of a checkpoint") from e
    return dict(value)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
