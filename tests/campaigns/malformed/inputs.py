"""Valid inputs of seconds: a run's settings, its data and a small checkpoint."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORDS = ("good", "fine", "great", "bad", "poor", "awful", "a", "the", "film", "book")
N_ROWS = 90


def toy_settings(**changes: Any) -> dict[str, Any]:
    """Return the settings of a run of a second on the embedded task: bags of words."""
    train = {"epochs": 1, "lr": 0.1, "batch_size": 16}
    values: dict[str, Any] = {
        "task": {"name": "agreement", "n_weak": 20, "n_transfer": 24, "n_test": 20},
        "weak": {"source": "bow"},
        "student": {"source": "bow"},
        "weak_train": dict(train),
        "student_train": dict(train),
        "losses": ["xent"],
        "seeds": [0],
        "output_dir": "out",
        "workers": 1,
        "threads": 1,
    }
    return {**values, **changes}


def write_settings(path: Path, values: Mapping[str, Any]) -> Path:
    """Write settings as YAML."""
    import yaml

    path.write_text(yaml.safe_dump(dict(values), sort_keys=False))
    return path


def run(path: Path) -> list[str]:
    """Return the command for a file of settings."""
    return ["run", "--config", path.name, "--quiet"]


def rows() -> list[tuple[str, str]]:
    """Return texts and labels; the words of a text decide its label."""
    import random

    rng = random.Random(0)
    out = []
    for i in range(N_ROWS):
        words = [rng.choice(WORDS[6:]) for _ in range(rng.randint(2, 8))]
        mood = rng.choice(WORDS[:3] if i % 2 else WORDS[3:6])
        out.append((f"{' '.join(words)} {mood} {i}", "pos" if i % 2 else "neg"))
    return out


def csv_text() -> str:
    """Return the rows as CSV."""
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows())


def local_settings(data: str, **changes: Any) -> dict[str, Any]:
    """Return the settings of a run on a file, with the checkpoint in ``student``."""
    task = {"name": "local", "path": data, "n_weak": 20, "n_transfer": 24, "n_test": 20}
    student = {"source": "student"}
    return toy_settings(task={**task, **changes}, student=student)


def checkpoint(path: Path) -> Path:
    """Copy a tiny Llama with its tokenizer to ``path``."""
    shutil.copytree(_saved(), path)
    return path


@functools.cache
def _saved() -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    _kept.append(tempfile.TemporaryDirectory(prefix="campaign-checkpoint-"))
    path = Path(_kept[0].name) / "student"
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", eos_token="[PAD]"
    )
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=24, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    return path


_kept: list[tempfile.TemporaryDirectory[str]] = []  # until the process ends


def edit_json(path: Path, **changes: Any) -> None:
    """Set values of a JSON object; ``None`` removes one."""
    values = json.loads(path.read_text())
    for name, value in changes.items():
        values.pop(name, None) if value is None else values.update({name: value})
    path.write_text(json.dumps(values))
