"""The runs: which supervisors label which data, and the students that learn from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig
from w2s_fast.models import ModelConfig
from w2s_fast.supervisors import SupervisorsConfig
from w2s_fast.tasks import TaskConfig
from w2s_fast.training import TrainConfig

DATA_SETS = ("youtube", "sst2")
LOSSES = ("xent", "gce", "logconf")
SEEDS = (0, 1, 2, 3, 4)
BASELINE = "weak model alone"
_SOURCES = {"youtube": "votes", "sst2": "functions:bench.labeling.data:SST2_FUNCTIONS"}
_SIZES = {
    "youtube": {"n_weak": 100, "n_transfer": 1000, "n_test": 500},
    "sst2": {"n_weak": 100, "n_transfer": 2000, "n_test": 1000},
}
_FILES = {"youtube": "wrench/youtube", "sst2": "sst2/train.tsv"}


def supervisors(name: str) -> dict[str, SupervisorsConfig]:
    """Return the blocks that are compared on a data set, by what the table calls them."""
    own = _SOURCES[name]

    def block(*sources: str, model: str = "dawid_skene", **more: str) -> SupervisorsConfig:
        return SupervisorsConfig(sources, model, **more)

    return {
        BASELINE: SupervisorsConfig(),
        "majority": block(own, model="majority"),
        "weighted": block(own, model="weighted"),
        "dawid_skene": block(own),
        "dawid_skene:anchor=100": block(own, model="dawid_skene:anchor=100"),
        "dawid_skene, confidence": block(own, row_weight="confidence"),
        "dawid_skene, all rows": block(own, row_weight="equal"),
        "tree_dawid_skene": block(own, model="tree_dawid_skene"),
        "dawid_skene, with the weak model": block(own, "weak"),
    }


def configuration(name: str, block: SupervisorsConfig, data: Path, student: Path) -> RunConfig:
    """Return a run: a head on a frozen sentence encoder learns from the block's labels.

    The recipe is that of ``python -m bench w2s``; the weak model is a bag of words.

    Args:
        name: Name in ``DATA_SETS``.
        block: The supervisors.
        data: File of ``write_rows``.
        student: Folder of the encoder.
    """
    columns = {"text": "0", "label": "1"} if name == "sst2" else {"votes": "votes"}
    return RunConfig(
        task=TaskConfig("local", str(data), **columns, **_SIZES[name]),
        weak=ModelConfig("bow"),
        student=ModelConfig(str(student), pooling="mean"),
        weak_train=TrainConfig(epochs=10, lr=0.1, max_length=128),
        student_train=TrainConfig(epochs=100, lr=1e-3, batch_size=128, max_length=128),
        supervisors=block,
        losses=LOSSES,
        methods=("probe",),
        seeds=SEEDS,
    )


def data_file(name: str, data: Path, out: Path) -> Path:
    """Return the file of a data set; WRENCH's splits are joined into one in ``out``.

    Args:
        name: Name in ``DATA_SETS``.
        data: Folder of the data sets.
        out: Existing folder of files that are made.
    """
    source = data / _FILES[name]
    if name == "sst2":
        return source
    path = out / f"{name}.jsonl"
    rows = [
        {"text": row["data"]["text"], "label": row["label"], "votes": row["weak_labels"]}
        for split in ("train", "valid", "test")
        for row in json.loads((source / f"{split}.json").read_text()).values()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def selected(results: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a run's results that is committed."""
    keys = ("seed", "name", "weak", "student", "ceiling", "pgr", "n_test", "weak_label_accuracy")
    return {
        "runs": [{key: run[key] for key in keys} for run in results["runs"]],
        "summary": results["summary"],
        "supervisors": results["supervisors"],
        "gold": results["gold"],
    }
