"""The runs of a sweep: one cell a task and pair of models, each a ``RunConfig`` with a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.models import ModelConfig
from w2s_fast.specs import settings, split
from w2s_fast.store import content_hash
from w2s_fast.sweeps.config import SweepConfig
from w2s_fast.tasks import TaskConfig
from w2s_fast.training import TrainConfig

CELLS = "cells"
_LONGEST_NAME = 120  # of a folder; file systems allow 255 bytes
_TRAINING = {f.name for f in fields(TrainConfig)}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        name: Of its folder.
        task, weak, student: What tables call them.
        same: Whether supervisor and student are the same model.
        cfg: The run.
    """

    name: str
    task: str
    weak: str
    student: str
    same: bool
    cfg: RunConfig


def make_cells(cfg: SweepConfig, device: str = "auto") -> list[Cell]:
    """Return the runs in the order of the lists.

    Args:
        cfg: The sweep.
        device: ``RunConfig.device`` of all of them.

    Raises:
        W2SError: A spec has a setting that is none, or two runs are the same.
    """
    models = labels([*cfg.weak_models, *cfg.student_models])
    tasks = labels(cfg.tasks)
    cells: list[Cell] = []
    for task in cfg.tasks:
        for weak, student in pairs(cfg):
            run = _run(cfg, task, weak, student, device)
            name = (tasks[task], models[weak], models[student])
            same = _shape(run.weak) == _shape(run.student)
            cells.append(Cell("", *name, same, run))
    _check_different(cells)
    names = [_folder(cell, cells) for cell in cells]
    return [
        replace(
            cell,
            name=name,
            cfg=replace(cell.cfg, output_dir=str(Path(cfg.output_dir) / CELLS / name)),
        )
        for cell, name in zip(cells, names, strict=True)
    ]


def pairs(cfg: SweepConfig) -> list[tuple[str, str]]:
    """Return the pairs of supervisor and student, as specs."""
    everyone = [(w, s) for w in cfg.weak_models for s in cfg.student_models]
    if cfg.pairs == "all":
        return everyone
    size = cfg.student_models.index
    return [(w, s) for w, s in everyone if size(w) <= size(s)]


def labels(specs: Sequence[str]) -> dict[str, str]:
    """Return a short name for each spec: the end of its path, with settings where it takes them."""
    short = {spec: Path(split(spec)[0]).name for spec in specs}
    names = {}
    for spec, name in short.items():
        rest = split(spec)[1]
        alone = list(short.values()).count(name) == 1
        names[spec] = name if alone or not rest else f"{name}:{rest}"
    return {s: n if list(names.values()).count(n) == 1 else s for s, n in names.items()}


def _run(cfg: SweepConfig, task: str, weak: str, student: str, device: str) -> RunConfig:
    run = cfg.run
    weak_model, weak_train = _model(weak, run.weak, run.weak_train)
    student_model, student_train = _model(student, run.student, run.student_train)
    return replace(
        run,
        task=_task(task, run.task),
        weak=weak_model,
        weak_train=weak_train,
        student=student_model,
        student_train=student_train,
        output_dir=cfg.output_dir,
        cache_dir=cfg.cache_dir or str(Path(cfg.output_dir) / "cache"),
        device=device,
    )


def _task(spec: str, base: TaskConfig) -> TaskConfig:
    name, rest = split(spec)
    return replace(base, **{"name": name, **settings(TaskConfig, rest, spec, "task")})


def _model(spec: str, base: ModelConfig, train: TrainConfig) -> tuple[ModelConfig, TrainConfig]:
    """The model of a spec and its training: sizes differ in what learning rate suits them."""
    source, rest = split(spec)
    parts = rest.split(",")
    own = [p for p in parts if p.partition("=")[0].strip() in _TRAINING]
    model = settings(ModelConfig, ",".join(p for p in parts if p not in own), spec, "model")
    trained = settings(TrainConfig, ",".join(own), spec, "model")
    return replace(base, **{"source": source, **model}), replace(train, **trained)


def _shape(model: ModelConfig) -> ModelConfig:
    """The model without the sizes that its source does not read."""
    plain = ModelConfig()
    if model.source == plain.source:
        return model
    return replace(model, hidden=plain.hidden, layers=plain.layers, heads=plain.heads)


def _check_different(cells: Sequence[Cell]) -> None:
    seen: list[Cell] = []
    for cell in cells:
        for other in seen:
            if cell.cfg == other.cfg:
                raise W2SError(
                    f"{_words(other)} and {_words(cell)} are the same run; drop one of tasks, "
                    "weak_models or student_models"
                )
        seen.append(cell)


def _words(cell: Cell) -> str:
    return f"'{cell.task}, {cell.weak} to {cell.student}'"


def _folder(cell: Cell, cells: Sequence[Cell]) -> str:
    """A readable name, with a digest where two cells would share it or it is too long."""
    name = _slug(cell)
    if len(name) <= _LONGEST_NAME and [_slug(c) for c in cells].count(name) == 1:
        return name
    return f"{name[:_LONGEST_NAME]}-{content_hash(repr(cell.cfg))[:8]}"


def _slug(cell: Cell) -> str:
    parts = (cell.task, cell.weak, cell.student)
    return "--".join(re.sub(r"[^A-Za-z0-9._=+-]+", "-", part).strip("-.") for part in parts)
