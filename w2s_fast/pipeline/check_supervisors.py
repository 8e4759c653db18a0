"""Check, before anything is computed, that the block ``supervisors`` fits the task."""

from __future__ import annotations

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.label_models import MajorityVote
from w2s_fast.label_models.votes import MIN_SOURCES
from w2s_fast.labeling import load_functions
from w2s_fast.pipeline.stages.posterior import make_model
from w2s_fast.supervisors import Functions, Generated, Source, VoteColumn, parse_source
from w2s_fast.tasks import TaskData


def check_supervisors(cfg: RunConfig, data: TaskData) -> None:
    """Check sources, label model and class balance against a task; import labelling functions.

    Args:
        cfg: Configuration of the run.
        data: The task of its first seed.

    Raises:
        W2SError: Something does not fit.
    """
    block = cfg.supervisors
    if not block.sources:
        return
    if data.kind == "generation":
        raise W2SError(
            f"supervisors.sources={list(block.sources)} vote for classes, and {data.name!r} is a "
            "generation task, whose labels are texts; leave them out"
        )
    n_classes = len(data.class_names)
    if isinstance(block.balance, list) and len(block.balance) != n_classes:
        raise W2SError(
            f"supervisors.class_balance={block.class_balance!r} has {len(block.balance)} numbers; "
            f"expected one for each of the classes {list(data.class_names)}"
        )
    model = make_model(cfg, n_classes)
    if data.ood is not None and not cfg.task.ood.n:
        raise W2SError(
            f"task {data.name!r} has out-of-distribution items without task.ood.n, which "
            "supervisors do not label; set task.ood.n, or leave supervisors.sources out"
        )
    for source in map(parse_source, block.sources):
        if isinstance(source, VoteColumn) and data.transfer.votes is None:
            raise W2SError(
                "supervisors.sources: 'votes' needs the column of the votes; set task.votes to it "
                "(task local)"
            )
        if isinstance(source, Functions):
            load_functions(source.path)
    if not isinstance(model, MajorityVote):
        _check_number(cfg, data)


def _check_number(cfg: RunConfig, data: TaskData) -> None:
    """Raise if there are too few columns of votes for rates; learned ones are not yet known."""
    sources = [parse_source(spec) for spec in cfg.supervisors.sources]
    if any(isinstance(source, Generated) for source in sources):
        return
    columns = sum(_columns(source, data) for source in sources)
    if columns < MIN_SOURCES:
        raise W2SError(
            f"supervisors.sources={list(cfg.supervisors.sources)} have {columns} columns of votes; "
            f"label_model={cfg.supervisors.label_model!r} learns their rates from at least "
            f"{MIN_SOURCES}: add sources, or set supervisors.label_model=majority"
        )


def _columns(source: Source, data: TaskData) -> int:
    if isinstance(source, Functions):
        return len(load_functions(source.path))
    if isinstance(source, VoteColumn):
        assert data.transfer.votes is not None
        return data.transfer.votes.shape[1]
    return 1
