"""Run one job against the store, in any process, and pack jobs for other processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig, at_seed, to_dict
from w2s_fast.distributed.world import get_world
from w2s_fast.errors import W2SError
from w2s_fast.files import tree_stamp
from w2s_fast.pipeline.context import Context, ReadFn
from w2s_fast.pipeline.jobs import Job
from w2s_fast.store import Artifact, StageBuild, Store


@dataclass(frozen=True)
class WorkItem:
    """A job with everything that its result depends on.

    Attributes:
        job: Job to compute.
        config: ``config_slice`` of the job.
        inputs: ``input_digests`` of the job.
        folders: Folders of the finished jobs it needs, by name.
        data: ``data_digest`` of the data it may read, by seed.
        models: ``tree_stamp`` of the checkpoint folders, by path.
    """

    job: Job
    config: dict[str, Any]
    inputs: dict[str, str]
    folders: dict[str, str]
    data: dict[str, str]
    models: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, to send to a worker process."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> WorkItem:
        """Return the work item that ``to_json`` packed."""
        job = dict(values["job"])
        for name in ("settings", "inputs"):
            job[name] = tuple((key, value) for key, value in job[name])
        job["gold"] = tuple(job["gold"])
        return WorkItem(**{**values, "job": Job(**job)})


def execute(
    cfg: RunConfig, work_item: WorkItem, threads: int, progress: Any, read: ReadFn
) -> Artifact:
    """Compute the job, or take it from the store if another process has just finished it.

    Under a launcher, all processes compute it together and rank 0 accesses the store.

    Args:
        cfg: Configuration of the run.
        work_item: The job and its inputs.
        threads: Number of torch threads; the order of a sum may depend on it.
        progress: Called with (step, steps, loss).
        read: Returns the splits of a seed.
    """
    with _building(Store(cfg.store_dir), work_item) as build:
        if build.artifact is None:
            _compute(cfg, work_item, threads, progress, read, build)
            get_world().call_on_main(lambda: _check_models(work_item))
    assert build.artifact is not None
    return build.artifact


@contextmanager
def _building(store: Store, work_item: WorkItem) -> Iterator[StageBuild]:
    """``Store.building`` for all processes: rank 0 locks, publishes and tells the others."""
    world, build = get_world(), StageBuild(Path(), None)
    with ExitStack() as stack:

        def begin() -> list[Any]:
            nonlocal build
            stage = store.building(work_item.job.stage, work_item.config, work_item.inputs)
            build = stack.enter_context(stage)
            return [str(build.path), build.artifact and build.artifact.to_json()]

        def publish() -> dict[str, Any]:
            stack.close()
            assert build.artifact is not None
            return build.artifact.to_json()

        path, done = world.call_on_main(begin)
        if not world.is_main_process:
            build = StageBuild(Path(path), done and Artifact.from_json(done))
        yield build
        build.artifact = Artifact.from_json(world.call_on_main(publish))


def find(store: Store, work_item: WorkItem) -> Artifact | None:
    """Return the job's result if the store has it; rank 0 decides for all processes."""

    def on_main() -> dict[str, Any] | None:
        key = store.key(work_item.job.stage, work_item.config, work_item.inputs)
        artifact = store.find(work_item.job.stage, key)
        return None if artifact is None else artifact.to_json()

    values = get_world().call_on_main(on_main)
    return None if values is None else Artifact.from_json(values)


def _compute(
    cfg: RunConfig,
    work_item: WorkItem,
    threads: int,
    progress: Any,
    read: ReadFn,
    build: StageBuild,
) -> None:
    from w2s_fast.ops import dispatch
    from w2s_fast.pipeline.stages.registry import STAGES

    dispatch.forget_served_ops()
    folders = {name: Path(path) for name, path in work_item.folders.items()}
    context = Context(at_seed(cfg, work_item.job.seed), work_item.job, folders, progress, read)
    # A head on cached states is too small for several threads: they would wait for each other.
    with _inputs_stay(folders), _threads(1 if work_item.job.setting("freeze") else threads):
        STAGES[work_item.job.stage](context, build)
    build.info["ops"] = dispatch.served_ops()
    get_world().barrier()  # no process may use the folder while it is renamed


@contextmanager
def _inputs_stay(folders: Mapping[str, Path]) -> Iterator[None]:
    """Turn the error that follows from a deleted input into one line."""
    try:
        yield
    except Exception as err:
        gone = next((path for path in folders.values() if not path.exists()), None)
        if gone is None or isinstance(err, W2SError):
            raise
        raise W2SError(
            f"{gone}, a finished stage, disappeared while it was used: do not move or delete "
            "folders of a run that is going on; run the same command again"
        ) from err


def _check_models(work_item: WorkItem) -> None:
    """Raise `W2SError` if a checkpoint is no longer the one that the stage is filed under."""
    for path, stamp in work_item.models.items():
        if tree_stamp(Path(path)) != stamp:
            raise W2SError(
                f"{path} changed while {work_item.job.name} was computed; its result is not kept: "
                "run the same command again once the folder is complete"
            )


@contextmanager
def _threads(n: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pack(cfg: RunConfig) -> dict[str, Any]:
    """Return the configuration for ``config.from_dict``, with an absolute store folder."""
    return to_dict(cfg) | {"cache_dir": str(cfg.store_dir.absolute())}
