"""What a run would compute: its stages, which of them are stored, and the time of the others."""

from __future__ import annotations

from dataclasses import dataclass

from w2s_fast.config import RunConfig
from w2s_fast.pipeline.experiment import Session, check_session, open_session
from w2s_fast.pipeline.jobs import Job, plan_jobs
from w2s_fast.pipeline.pool import choose_parallelism
from w2s_fast.pipeline.stage_times import StageTimes
from w2s_fast.pipeline.stages.build_model import device


@dataclass(frozen=True)
class StageForecast:
    """What would become of one stage.

    Attributes:
        job: The job.
        stored: Whether the store has its result.
        started: Whether an interrupted run left a checkpoint of it.
        seconds: Expected seconds to compute it; 0 if it is stored, None if nothing is known.
    """

    job: Job
    stored: bool
    started: bool
    seconds: float | None


@dataclass(frozen=True)
class Forecast:
    """What a run would do.

    Attributes:
        stages: All stages, each after those it needs.
        workers: Number of stages computed at a time.
    """

    stages: tuple[StageForecast, ...]
    workers: int

    @property
    def remaining(self) -> list[StageForecast]:
        """The stages that would be computed."""
        return [stage for stage in self.stages if not stage.stored]

    @property
    def seconds(self) -> float:
        """Expected seconds of the remaining stages whose time is known.

        Stages that wait for each other take the sum of their times; all together take at least
        their sum divided by the number of workers. The larger of the two counts.
        """
        done: dict[str, float] = {}
        for stage in self.stages:
            start = max((done[name] for name in stage.job.needs), default=0.0)
            done[stage.job.name] = start + (stage.seconds or 0.0)
        total = sum(stage.seconds or 0.0 for stage in self.stages)
        return max(*done.values(), total / self.workers)


def forecast(cfg: RunConfig) -> Forecast:
    """Check a run as ``run`` does, and return what it would compute; nothing is written.

    A stage whose inputs are not stored counts as not stored.

    Raises:
        W2SError: As ``run``, as far as that is known before anything is computed.
    """
    with open_session(cfg, quiet=True, computes=False) as session:
        check_session(session)
        times = StageTimes(session.store.root)
        stages = tuple(_forecast(session, job, times) for job in plan_jobs(cfg).jobs)
        workers, _ = choose_parallelism(cfg, cuda=device(cfg) == "cuda")
    return Forecast(stages, workers)


def _forecast(session: Session, job: Job, times: StageTimes) -> StageForecast:
    if not session.ready(job):
        return StageForecast(job, False, False, times.expect(job.stage, session.settings(job)))
    item, store = session.work_item(job), session.store
    key = store.key(job.stage, item.config, item.inputs)
    artifact = store.find(job.stage, key, repair=False)
    if artifact is not None:
        session.results[job.name] = artifact
        return StageForecast(job, True, False, 0.0)
    seconds = times.expect(job.stage, item.config)
    return StageForecast(job, False, store.has_checkpoint(job.stage, key), seconds)
