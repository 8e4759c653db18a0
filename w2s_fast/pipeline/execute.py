"""Run one job against the store, in whichever process; and pack a job for another process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig, from_dict, to_dict
from w2s_fast.distributed.world import get_world
from w2s_fast.pipeline.jobs import Job
from w2s_fast.store import Artefact, Building, Store


@dataclass(frozen=True)
class Order:
    """A job with everything that its result depends on.

    Attributes:
        job: The job.
        config: ``config_slice`` of the job.
        inputs: ``input_digests`` of the job.
        folders: Folder of each finished job it needs, by name.
    """

    job: Job
    config: dict[str, Any]
    inputs: dict[str, str]
    folders: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the way to a worker."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Order:
        """Return the order that ``to_json`` packed."""
        job = dict(values["job"])
        for name in ("settings", "inputs"):
            job[name] = tuple((key, value) for key, value in job[name])
        job["gold"] = tuple(job["gold"])
        return Order(Job(**job), values["config"], values["inputs"], values["folders"])


def execute(cfg: RunConfig, order: Order, threads: int, progress: Any) -> Artefact:
    """Compute the job, or take it from the store when another process has just finished it.

    Under a launcher all processes compute it together; rank 0 keeps the store.

    Args:
        cfg: The run.
        order: The job and its inputs.
        threads: Torch threads; fixed, as the order of a sum may depend on it.
        progress: Called with (step, steps, loss).
    """
    world = get_world()
    if not world.is_main_process:
        told = world.broadcast_object(None)
        if not told["done"]:
            _compute(cfg, order, threads, progress, Building(Path(told["path"]), None))
        return _from_json(world.broadcast_object(None))
    store = Store(cfg.store_dir)
    with store.building(order.job.stage, order.config, order.inputs) as build:
        world.broadcast_object({"path": str(build.path), "done": build.artefact is not None})
        if build.artefact is None:
            _compute(cfg, order, threads, progress, build)
    assert build.artefact is not None
    world.broadcast_object(_to_json(build.artefact))
    return build.artefact


def find(store: Store, order: Order) -> Artefact | None:
    """Look for the job's result in the store; rank 0's answer counts."""
    world, found = get_world(), None
    if world.is_main_process:
        key = store.key(order.job.stage, order.config, order.inputs)
        artefact = store.find(order.job.stage, key)
        found = None if artefact is None else _to_json(artefact)
    told = world.broadcast_object(found)
    return None if told is None else _from_json(told)


def _compute(cfg: RunConfig, order: Order, threads: int, progress: Any, build: Building) -> None:
    from w2s_fast.pipeline.context import Context
    from w2s_fast.pipeline.stages.registry import STAGES

    folders = {name: Path(path) for name, path in order.folders.items()}
    # a head on cached states is too small to share out: two threads would wait for each other
    with _threads(1 if order.job.setting("freeze") else threads):
        STAGES[order.job.stage](Context(cfg, order.job, folders, progress), build)
    get_world().barrier()  # nobody reads or writes in the folder when it moves


def _to_json(a: Artefact) -> dict[str, Any]:
    return {"path": str(a.path), "digest": a.digest, "info": dict(a.info)}


def _from_json(told: Mapping[str, Any]) -> Artefact:
    return Artefact(Path(told["path"]), told["digest"], told["info"])


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
    """Return the run's settings as plain values with absolute folders."""
    return to_dict(cfg) | {"cache_dir": str(cfg.store_dir.absolute())}


def unpack(values: Mapping[str, Any]) -> RunConfig:
    """Return the run that ``pack`` packed."""
    return from_dict(values)
