"""Export a trained model of a run as a folder that ``transformers`` loads."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig, model_of, train_of
from w2s_fast.distributed.world import SINGLE_PROCESS
from w2s_fast.errors import W2SError, nearest
from w2s_fast.files import explain_write_errors, usual_mode, write_json
from w2s_fast.models.weights import save_tensors
from w2s_fast.paths import user_path
from w2s_fast.pipeline.context import Context
from w2s_fast.pipeline.experiment import open_session
from w2s_fast.pipeline.exported import ABOUT, HEAD
from w2s_fast.pipeline.jobs import TRAINED, plan_jobs
from w2s_fast.pipeline.model_card import model_card
from w2s_fast.pipeline.stages.build_model import (
    save_backbone,
    save_language_model,
    whole_model,
)
from w2s_fast.report import load_results

CARD = "README.md"


def export(cfg: RunConfig, name: str, folder: str | Path, *, quiet: bool = True) -> None:
    """Export the model that a finished stage trained.

    ``AutoModel.from_pretrained(folder)`` loads its backbone, LoRA merged in; ``head.safetensors``
    holds the classification head (``weight`` (C, D), ``bias`` (C,)) or, of a reward model,
    ``weight`` (1, D); ``w2s.json`` says how it is pooled, and `exported.load_exported` predicts
    with it. Of a task of kind ``generation``, and of a policy, the folder is a causal language
    model. README.md is a model card, with the scores of the run if it is finished.

    Args:
        cfg: Configuration of the run; its stages must be in the store.
        name: Name of the stage: ``weak/SEED``, ``ceiling/SEED``, ``student/SEED/LOSS``, or with a
            method ``student/SEED/METHOD+LOSS``.
        folder: Destination; must not exist, or be empty.
        quiet: Show no progress.

    Raises:
        W2SError: There is no such stage, it is not finished, or the folder is not empty.
    """
    jobs = {job.name: job for job in plan_jobs(cfg).jobs if job.stage in TRAINED}
    if name not in jobs:
        raise W2SError(f"no stage {name!r} in this run; expected one of {', '.join(jobs)}"
                       f"{nearest(name, jobs)}")  # fmt: skip
    folder = user_path(folder, "the folder of the export")
    if folder.exists() and any(folder.iterdir()):
        raise W2SError(f"{folder} is not empty; name a new folder")
    cfg = dataclasses.replace(
        cfg, weak_train=cfg.weak_train.unsharded(), student_train=cfg.student_train.unsharded()
    )
    with open_session(cfg, quiet, computes=False) as session:
        for job in plan_jobs(cfg).jobs[:-1]:
            if session.ready(job):
                session.take_stored(job)
        if name not in session.results:
            raise W2SError(f"{name} is not finished in {cfg.store_dir}; run it first")
        work_item = session.work_item(jobs[name])
        folders = {n: Path(path) for n, path in work_item.folders.items()}
        ctx = Context(cfg, jobs[name], folders, lambda *_: None, session.read)
        model, tokenizer = whole_model(ctx, session.results[name].path)
        with explain_write_errors("the model", folder.absolute()), _whole_or_empty(folder):
            _write(model, tokenizer, folder, _about(ctx))
            kind = "generation" if hasattr(model, "lm") else ctx.task.kind
            card = model_card(cfg, jobs[name], kind, _results(cfg))
            (folder / CARD).write_text(card, encoding="utf-8")
            for file in folder.iterdir():
                file.chmod(usual_mode())


@contextlib.contextmanager
def _whole_or_empty(folder: Path) -> Iterator[None]:
    """Remove what an export that fails has written: the next try takes an empty folder only."""
    try:
        yield
    except BaseException:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise


def _about(ctx: Context) -> dict[str, Any]:
    """Return what `load_exported` needs to know beside the weights."""
    role = ctx.job.setting("role")
    return {
        "kind": ctx.task.kind,
        "classes": ctx.n_classes,
        "class_names": list(ctx.task.class_names),
        "max_length": train_of(ctx.cfg, role).max_length,
        "dtype": model_of(ctx.cfg, role).dtype,
    }


def _results(cfg: RunConfig) -> dict[str, Any] | None:
    """Return results.json of the run, None if there is none that can be read."""
    try:
        return load_results(Path(cfg.output_dir))
    except W2SError:
        return None


def _write(model: Any, tokenizer: Any, folder: Path, about: dict[str, Any]) -> None:
    if not hasattr(model, "base"):
        raise W2SError(f"{type(model).__name__} is no transformers model; only those are exported")
    if getattr(model, "projection", None) is not None:
        raise W2SError(
            "the model has a projection before its head, which is dropped after its training; "
            "expected the student of method projection_head, without a number at the end"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "lm"):
        save_language_model(model, tokenizer, folder)
        return
    save_backbone(model, tokenizer, folder)
    head = [(name, t) for name, t in model.head.state_dict().items()]
    save_tensors(head, folder / HEAD, SINGLE_PROCESS, 10**9)
    write_json(folder / ABOUT, {"pooling": model.pooling, **about})
