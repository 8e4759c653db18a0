"""The experiments: data sets, supervisors, protocols, and the cells that they consist of.

A cell is one data set, one supervisor and one seed under one protocol; it has a row for each
method. Its splits depend on set and seed alone, so all methods and supervisors of a seed share
their test items, and differences between them are paired.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.evidence.models import ENCODER, SHALLOW, STUDENT
from w2s_fast.config import RunConfig
from w2s_fast.debate import CriticConfig, WriterConfig
from w2s_fast.models import ModelConfig
from w2s_fast.tasks import TaskConfig
from w2s_fast.training import TrainConfig

SIZES = {"n_weak": 500, "n_transfer": 500, "n_test": 1000}
PAIR_SIZES = {"n_weak": 250, "n_transfer": 500, "n_test": 500}  # a pair has two dialogues
QUICK_SIZES = {"n_weak": 20, "n_transfer": 40, "n_test": 20}
SETS = {  # name -> file in the folder of the data
    "sst2": "sst2/train.tsv",
    "cola": "cola/in_domain_train.tsv",
    "safety": "safety/safety.csv",
    "hh_single_turn": "hh_single_turn/harmless_train_w2s.jsonl",
}
BAG_OF_WORDS = "bow"
SUPERVISORS = (BAG_OF_WORDS, SHALLOW, ENCODER)
# Plain cross-entropy is the first: the others are compared with it.
PROBE_METHODS = (
    "probe@xent",
    # losses
    "probe@hard_xent", "probe@logconf", "probe@logconf_paper", "probe@logconf_openai",
    "probe@product", "probe@window", "probe@smoothing", "probe@focal", "probe@gce",
    "probe@reverse_ce", "probe@entropy_min",
    # what the student knows before it is finetuned
    "elicit|probe@xent", "posterior|probe@xent", "posterior:balance=em|probe@xent",
    "consistent|probe@xent", "consistent:start=answers|probe@xent", "ccs|probe@xent",
    "agree_prior|probe@xent", "combine|probe@xent", "selective|probe@xent",
    # which weak labels to believe
    "confident|probe@xent", "resample|probe@xent", "small_loss|probe@xent",
    "trajectory|probe@xent", "conformal|probe@xent", "knn_filter|probe@xent",
    "probe_filter|probe@xent", "probe_relabel|probe@xent", "trust|probe@xent",
    # several weak models
    "agree|probe@xent", "self_consistency|probe@xent", "ensemble|probe@xent",
    "teacher_weights|probe@xent",
    # several students, and when to stop
    "strong_to_strong|probe@xent", "born_again|probe@xent", "early_stop|probe@xent",
    "ground_truth_early_stop|probe@xent",
)  # fmt: skip

# Students and labels that resist noise, in tables of their own: Holm corrects for fewer methods.
NOISE_METHODS = (
    "probe@xent",
    # within the steps of a training
    "nested_dropout|probe@xent", "co_teaching|probe@xent", "mean_teacher|probe@xent",
    "fixmatch|probe@xent", "self_training|probe@xent", "mixup|probe@xent",
    # averaged weights, and heads that are not trained
    "soup|probe@xent", "greedy_soup|probe@xent", "interpolate|probe@xent",
    "probe|prototype_head@xent", "probe|prototype_head:train=true@xent",
    # weak models that are boosted, or that know what they do not know
    "ensem_w2s|probe@xent", "bayesian|probe@xent", "bayesian|probe@evidential",
    # labels and weights
    "prototype|probe@xent", "debias|probe@xent", "confidence_weighted|probe@xent",
)  # fmt: skip

# A weak critic instead of a weak teacher: both models write, so the supervisor is a language model.
CRITIC_METHODS = ("probe@xent", "elicit|probe@xent", "critique|probe@xent")
# The student's reasons and the supervisor's critique, a few sentences each.
WRITERS: dict[str, Any] = {
    "transcript_writer": WriterConfig(max_tokens=48),
    "critic_writer": CriticConfig(max_tokens=48),
}


@dataclass(frozen=True)
class Protocol:
    """How students are trained, and on what.

    Attributes:
        title: Heading of its tables.
        sets: Keys of ``SETS``.
        methods: Specs of a run; the first is the baseline.
        seeds: Seeds of splits and trainings.
        batch: Number of methods whose rows are written together.
        training: Recipe of student and ceiling.
        supervisors: Those of its cells.
    """

    title: str
    sets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    batch: int
    training: TrainConfig
    supervisors: tuple[str, ...] = SUPERVISORS


# Recipe of Burns et al. 2023 (arXiv 2312.09390), App. D.2, with half the epochs.
_HEADS = TrainConfig(epochs=100, lr=1e-3, batch_size=128, max_length=256)
PROTOCOLS = {
    "probe": Protocol(
        "Head on frozen hidden states",
        tuple(SETS),
        PROBE_METHODS,
        (0, 1, 2, 3, 4),
        len(PROBE_METHODS),
        _HEADS,
    ),
    "probe_noise": Protocol(
        "Head on frozen hidden states, against noise",
        ("sst2", "cola", "safety"),
        NOISE_METHODS,
        (0, 1, 2, 3, 4),
        len(NOISE_METHODS),
        _HEADS,
        (BAG_OF_WORDS,),
    ),
    "probe_critique": Protocol(
        "Head on frozen hidden states, weak critic",
        ("sst2",),
        CRITIC_METHODS,
        (0, 1, 2),
        len(CRITIC_METHODS),
        _HEADS,
        (SHALLOW,),
    ),
    "finetune": Protocol(
        "Full finetuning",
        ("sst2", "cola"),
        ("naive@xent", "naive@logconf"),
        (0, 1, 2),
        1,
        TrainConfig(epochs=2, lr=5e-5, batch_size=16, warmup_frac=0.1, max_length=256),
    ),
}


@dataclass(frozen=True)
class Cell:
    """One run: some methods of a protocol on one set, with one supervisor and one seed."""

    protocol: str
    data: str
    supervisor: str
    seed: int
    methods: tuple[str, ...]

    @property
    def name(self) -> str:
        """The cell in one line."""
        return f"{self.protocol} {self.data} {self.supervisor} seed {self.seed}"

    def key(self, method: str) -> tuple[Any, ...]:
        """Return the columns that identify the row of a method."""
        return (self.protocol, self.data, self.supervisor, self.seed, method)


def cells() -> Iterator[Cell]:
    """Yield every cell: all sets of a supervisor, in both protocols, before the next supervisor."""
    for supervisor in SUPERVISORS:
        for data in SETS:
            for name, protocol in PROTOCOLS.items():
                taken = data in protocol.sets and supervisor in protocol.supervisors
                for seed in protocol.seeds if taken else ():
                    for first in range(0, len(protocol.methods), protocol.batch):
                        methods = protocol.methods[first : first + protocol.batch]
                        yield Cell(name, data, supervisor, seed, methods)


def configuration(cell: Cell, data: Path, models: Path, *, quick: bool = False) -> RunConfig:
    """Return the run of a cell.

    Args:
        cell: What is run.
        data: Folder of the data sets.
        models: Folder of ``make_models``.
        quick: Few items and one epoch, to check that it runs.
    """
    cfg = RunConfig(
        task=task(cell.data, data),
        weak=weak_model(cell.supervisor, models),
        student=ModelConfig(str(models / STUDENT), dtype="bf16"),
        weak_train=weak_recipe(cell.supervisor),
        student_train=PROTOCOLS[cell.protocol].training,
        losses=("xent",),
        methods=cell.methods,
        seeds=(cell.seed,),
        threads=1,  # two stages at a time use two cores better than two threads of one stage
        **WRITERS,
    )
    if not quick:
        return cfg
    return replace(
        cfg,
        task=replace(cfg.task, **QUICK_SIZES),
        weak_train=replace(cfg.weak_train, epochs=1),
        student_train=replace(cfg.student_train, epochs=1),
        workers=1,  # in this process: toy stages take less time than the start of workers
    )


def task(name: str, data: Path) -> TaskConfig:
    """Return the task of a set, with the prompt that asks the untrained student."""
    from w2s_fast.tasks.datasets.cola import COLA
    from w2s_fast.tasks.datasets.sst2 import SST2

    path = str(data / SETS[name])
    if name == "sst2":
        return TaskConfig(
            "local", path, text="0", label="1", prompt=SST2.prompt, words=SST2.words, **SIZES
        )
    if name == "cola":
        words = (" no", " yes")
        return TaskConfig(
            "local", path, text="3", label="1", prompt=COLA.prompt, words=words, **SIZES
        )
    if name == "safety":
        return TaskConfig("wts_safety", path, **SIZES)
    return TaskConfig("pairs", path, **PAIR_SIZES)


def weak_model(supervisor: str, models: Path) -> ModelConfig:
    """Return the model of a supervisor."""
    if supervisor == BAG_OF_WORDS:
        return ModelConfig("bow")
    pooling = "mean" if supervisor == ENCODER else "last"
    return ModelConfig(str(models / supervisor), pooling=pooling, dtype="bf16")


def weak_recipe(supervisor: str) -> TrainConfig:
    """Return the finetuning of a supervisor on true labels."""
    if supervisor == BAG_OF_WORDS:
        return TrainConfig(epochs=10, lr=0.1, max_length=256)
    return TrainConfig(epochs=3, lr=1e-4, batch_size=16, warmup_frac=0.1, max_length=256)


def report_name(spec: str) -> str:
    """Return the name that reports and stages give a student: ``METHOD+LOSS``, or ``LOSS``."""
    method, _, loss = spec.partition("@")
    return loss if method == "naive" else f"{method}+{loss}"


def remaining(cell: Cell, finished: set[tuple[Any, ...]]) -> Cell:
    """Return the cell with the methods that have no row yet."""
    return replace(cell, methods=tuple(m for m in cell.methods if cell.key(m) not in finished))
