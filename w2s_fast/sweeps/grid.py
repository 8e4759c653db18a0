"""Expand a sweep into cells: a named ``RunConfig`` per task and pair of models."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from w2s_fast.config import RunConfig, naming_block
from w2s_fast.errors import W2SError
from w2s_fast.files import content_hash
from w2s_fast.models import ModelConfig
from w2s_fast.specs import settings, split
from w2s_fast.sweeps.sweep_config import SweepConfig
from w2s_fast.tasks import TaskConfig
from w2s_fast.training import TrainConfig

CELLS = "cells"
_MAX_NAME = 120  # letters of a folder name; file systems allow 255 bytes
_TRAINING_FIELDS = {f.name for f in fields(TrainConfig)}


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: Name of its folder.
        task, weak, student: Short names of task, supervisor and student in tables.
        same: Whether supervisor and student are the same model.
        cfg: Configuration of the run.
    """

    name: str
    task: str
    weak: str
    student: str
    same: bool
    cfg: RunConfig


def make_cells(cfg: SweepConfig, device: str = "auto") -> list[Cell]:
    """Return the cells in the order of the configured lists.

    Args:
        cfg: The sweep.
        device: ``RunConfig.device`` of every cell.

    Raises:
        W2SError: A spec has an unknown setting, or two cells are the same run.
    """
    models = short_names([*cfg.weak_models, *cfg.student_models])
    tasks = short_names(cfg.tasks)
    cells: list[Cell] = []
    for task in cfg.tasks:
        for weak, student in model_pairs(cfg):
            run = _run_config(cfg, task, weak, student, device)
            labels = (tasks[task], models[weak], models[student])
            same = _used_settings(run.weak) == _used_settings(run.student)
            cells.append(Cell("", *labels, same, run))
    _check_different(cells)
    names = [_folder_name(cell, cells) for cell in cells]
    return [
        replace(
            cell,
            name=name,
            cfg=replace(cell.cfg, output_dir=str(Path(cfg.output_dir) / CELLS / name)),
        )
        for cell, name in zip(cells, names, strict=True)
    ]


def model_pairs(cfg: SweepConfig) -> list[tuple[str, str]]:
    """Return the pairs of supervisor and student, as specs."""
    pairs = [(w, s) for w in cfg.weak_models for s in cfg.student_models]
    if cfg.pairs == "all":
        return pairs
    size = cfg.student_models.index  # the list is in order of size
    return [(w, s) for w, s in pairs if size(w) <= size(s)]


def short_names(specs: Sequence[str]) -> dict[str, str]:
    """Return a short name per spec: the end of its path, with settings if needed to be unique."""
    basenames = {spec: Path(split(spec)[0]).name for spec in specs}
    names = {}
    for spec, name in basenames.items():
        rest = split(spec)[1]
        unique = list(basenames.values()).count(name) == 1
        names[spec] = name if unique or not rest else f"{name}:{rest}"
    return {s: n if list(names.values()).count(n) == 1 else s for s, n in names.items()}


def _run_config(cfg: SweepConfig, task: str, weak: str, student: str, device: str) -> RunConfig:
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
    changes = {"name": name, **settings(TaskConfig, rest, spec, "task")}
    with naming_block(f"task {spec!r}", ": "):
        return replace(base, **changes)


def _model(spec: str, base: ModelConfig, train: TrainConfig) -> tuple[ModelConfig, TrainConfig]:
    """Return model and training of a spec; a learning rate that suits one size may not suit all."""
    source, rest = split(spec)
    parts = rest.split(",")
    training = [p for p in parts if p.partition("=")[0].strip() in _TRAINING_FIELDS]
    model = settings(ModelConfig, ",".join(p for p in parts if p not in training), spec, "model")
    changed = settings(TrainConfig, ",".join(training), spec, "model")
    with naming_block(f"model {spec!r}", ": "):
        return replace(base, **{"source": source, **model}), replace(train, **changed)


def _used_settings(model: ModelConfig) -> ModelConfig:
    """Reset the sizes that only a model built from scratch reads."""
    default = ModelConfig()
    if model.source == default.source:
        return model
    return replace(model, hidden=default.hidden, layers=default.layers, heads=default.heads)


def _check_different(cells: Sequence[Cell]) -> None:
    for first, second in itertools.combinations(cells, 2):
        if first.cfg == second.cfg:
            raise W2SError(
                f"{_quoted_title(first)} and {_quoted_title(second)} are the same run; drop one of "
                "tasks, weak_models or student_models"
            )


def _quoted_title(cell: Cell) -> str:
    return f"'{cell.task}, {cell.weak} to {cell.student}'"


def _folder_name(cell: Cell, cells: Sequence[Cell]) -> str:
    """Return a readable name, with a digest if it is too long or another cell has the same."""
    name = _slug(cell)
    if len(name) <= _MAX_NAME and [_slug(c) for c in cells].count(name) == 1:
        return name
    return f"{name[:_MAX_NAME]}-{content_hash(repr(cell.cfg))[:8]}"


def _slug(cell: Cell) -> str:
    parts = (cell.task, cell.weak, cell.student)
    return "--".join(re.sub(r"[^A-Za-z0-9._=+-]+", "-", part).strip("-.") for part in parts)
