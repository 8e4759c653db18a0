"""Whole runs on several processes, killed and resumed; this file is also the ranks' program."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers import ranks
from w2s_fast.cli import main as cli
from w2s_fast.config import RunConfig, to_yaml
from w2s_fast.pipeline.artifacts import LOG, PAIR_LOGPROB, PERPLEXITY, TEST
from w2s_fast.pipeline.stages import samples
from w2s_fast.pipeline.stages.registry import STAGES
from w2s_fast.training import checkpoint

_KILL = "W2S_TEST_KILL"


class Kill(NamedTuple):
    """A moment at which rank 0 dies.

    Attributes:
        job: Name of the job, such as "student/0/delta+xent".
        event: "checkpoint": one is saved; "part": a part of samples is about to be written.
        number: Number of the event within the job, from 1.
    """

    job: str
    event: str
    number: int = 1


def write_run(folder: Path, cfg: RunConfig, **student_train: Any) -> list[str]:
    """Write a run with other settings of ``student_train``; return the arguments that start it."""
    students = dataclasses.replace(cfg.student_train, **student_train)
    path = folder / "run.yaml"
    path.write_text(to_yaml(dataclasses.replace(cfg, student_train=students)))
    return ["run", "--config", str(path), "--quiet"]


def run(size: int, arguments: list[str]) -> None:
    """Run on ``size`` processes to the end."""
    ranks.run(__file__, size, arguments)


def run_until(kill: Kill, arguments: list[str]) -> None:
    """Run on two processes; rank 0 dies, and the other one notices."""
    killed = ranks.start(__file__, 2, json.dumps(arguments), **{_KILL: json.dumps(kill)})
    for p in killed:
        p.communicate(timeout=280)
    assert killed[0].returncode == -signal.SIGKILL and killed[1].returncode, kill


def results_of(folder: Path) -> dict[str, Any]:
    """Return the results of a finished run."""
    results: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text())
    return results


def stage_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of every stage of a finished run by the name of its job."""
    stages = results_of(folder)["provenance"]["stages"]
    return {name: folder / "out" / "cache" / stage["folder"] for name, stage in stages.items()}


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """Return what models computed: losses and predictions of students, numbers of texts."""
    arrays: dict[str, np.ndarray] = {}
    for name, path in stage_folders(folder).items():
        for file in (PAIR_LOGPROB, PERPLEXITY):
            if (path / file).exists():
                arrays[name] = np.load(path / file)
        if name.startswith("student/"):
            arrays[f"{name} losses"] = np.array(json.loads((path / LOG).read_text())["losses"])
            table = pq.read_table(path / TEST)
            if "probs" in table.column_names:
                arrays[f"{name} probs"] = np.array(table["probs"].to_pylist())
    return arrays


def assert_close(two: dict[str, np.ndarray], one: dict[str, np.ndarray], what: object) -> None:
    """Compare the arrays of two runs whose sums have another order."""
    assert two.keys() == one.keys(), what
    for name, values in one.items():
        assert two[name] == pytest.approx(values, abs=2e-3), (what, name)


def assert_kills_change_no_byte(
    job: Callable[[Path], list[str]], kills: Sequence[Kill], folder: Path
) -> None:
    """Compare a run with one that is killed again and again: the same bytes in every file.

    Stages that are published stay as they are, and the stage of a kill is not published.

    Args:
        job: Writes the run into a folder and returns the arguments that start it.
        kills: Moments in their order.
        folder: Empty folder.
    """
    straight, killed = folder / "straight", folder / "killed"
    run(2, job(straight))
    stages, arguments = stage_folders(straight), job(killed)
    cache, before = killed / "out" / "cache", {}
    for kill in kills:
        run_until(kill, arguments)
        name = stages[kill.job].name
        assert (cache / f".{name}").is_dir() and not (cache / name).exists(), kill
        after = _stamps(cache)
        assert after.items() >= before.items(), kill
        before = after
    run(2, arguments)
    assert before and _stamps(cache).items() >= before.items()
    files = _files(stages.values())
    assert any(name.startswith("student-") for name in files)
    assert _files(stage_folders(killed).values()) == files


def _stamps(cache: Path) -> dict[Path, tuple[int, int]]:
    """Return what changes where a file of a published stage is written again."""
    stages = [path for path in cache.iterdir() if not path.name.startswith(".")]
    stats = {p: p.stat() for stage in stages for p in stage.rglob("*") if p.is_file()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def _files(stages: Iterable[Path]) -> dict[str, bytes]:
    """Return the files of stages, without their times."""
    return {
        str(path.relative_to(stage.parent)): path.read_bytes()
        for stage in stages
        for path in stage.rglob("*")
        if path.is_file() and path.name != "stage.json"
    }


def main(args: list[str]) -> int:
    """Be a rank of a run, whose rank 0 may be killed."""
    samples.PART_ROWS = 20
    if os.environ["RANK"] == "0" and (kill := os.environ.get(_KILL)):
        _arm(Kill(*json.loads(kill)))
    return cli.main(args)


def _arm(kill: Kill) -> None:
    for name, stage in list(STAGES.items()):
        STAGES[name] = functools.partial(_until, kill, stage)


def _until(kill: Kill, stage: Callable[..., None], ctx: Any, build: Any) -> None:
    """Be a stage, and die at the event if the job is that of the kill."""
    if ctx.job.name != kill.job:
        return stage(ctx, build)
    left = [kill.number]

    def happens() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    save, write = checkpoint.save, samples.write_samples

    def save_and_die(*arguments: Any) -> None:
        save(*arguments)
        happens()

    def die_or_write(*arguments: Any) -> None:
        happens()
        write(*arguments)

    if kill.event == "checkpoint":
        checkpoint.save = save_and_die
    else:
        samples.write_samples = die_or_write
    stage(ctx, build)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
