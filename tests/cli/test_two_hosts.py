"""Run the documented launch lines on two hosts (see ``cluster``), with ZeRO-3 over gloo.

Then a rank is killed, a rank is stopped, the network is cut: the job must end in bounded time, name
the lost rank and leave no process behind, and the same command must finish with the results of an
undisturbed run.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ranks
from helpers.cluster import HOSTS, ROOT, TIMEOUT_S, Cluster, Job, fill, without, without_ssh

from w2s_fast.distributed.heartbeat import EXIT_CODE

pytest.importorskip("deepspeed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.dist,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(without()), reason=without()),
]
needs_ssh = pytest.mark.skipif(bool(without_ssh()), reason=without_ssh())
FIRST, SECOND = HOSTS
SHORT = "--student_train.epochs 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster")
    fill(path)
    return path


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(folder).up() as running:
        yield running


def documented(start: str, word: str = "") -> str:
    """Return the line of docs/distributed.md that begins with ``start`` and contains ``word``."""
    text = (ROOT / "docs" / "distributed.md").read_text().replace("\\\n", "")
    lines = re.findall(rf"^{start} [^#\n]*", text, re.M)
    (match,) = (line.strip() for line in lines if word in line)
    return match


def without_ssh_lines(options: str = "") -> list[tuple[str, str]]:
    """Return the lines that are started on every host, with its number."""
    line = documented("w2s-fast launch", "--no-ssh")
    assert HOSTS[FIRST] in line
    numbered = [line.replace("--node-rank 0", f"--node-rank {i}") for i in range(len(HOSTS))]
    return [(host, f"{line} {options}") for host, line in zip(HOSTS, numbered, strict=True)]


def ssh_lines(options: str = "") -> list[tuple[str, str]]:
    """Return the lines that are started on one host."""
    text = documented("w2s-fast launch", "--hostfile hosts run.yaml")
    return [(FIRST, f"{text} {options}")]


# On an idle machine a job is over 3 s after a kill, TIMEOUT_S + 3 s after a hang or a cut.
MOST_S = TIMEOUT_S + 40.0
# Killed and stopped ranks of one host: distributed/test_world.py. A cable is between two hosts.
FAULTS = {"no ssh": ("cut", "killed", "stopped") if ranks.LONG else ("cut",),
          "ssh": ("killed", "cut")}  # fmt: skip


@pytest.mark.parametrize("how", ["no ssh", pytest.param("ssh", marks=[needs_ssh, ranks.minutes])])
def test_faults(how: str, cluster: Cluster, folder: Path) -> None:
    """The job ends and names the lost rank; the same command then finishes as if undisturbed.

    pipeline/test_several_processes.py and training/test_sharding.py show this on one host.
    """
    lines = ssh_lines() if how == "ssh" else without_ssh_lines()
    undisturbed = None
    if ranks.LONG:
        undisturbed = Job(cluster, folder / f"{how[:2]}-undisturbed", lines).succeed()
    for fault in FAULTS[how]:
        job = Job(cluster, folder / f"{how[:2]}-{fault}", lines)
        job.until_checkpoint()
        pid = job.processes()[1]
        begin = time.monotonic()
        if fault == "cut":
            cluster.cable("down")
        else:
            os.kill(pid, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        try:
            codes = job.wait(MOST_S)
            seconds = time.monotonic() - begin
        finally:
            cluster.cable("up")
        print(f"{how}, {fault}: over after {seconds:.1f} s, exit codes {codes}")
        assert set(codes) == {EXIT_CODE} and seconds < MOST_S, (fault, codes, seconds, job.output())
        assert f"lost rank 1 on {SECOND}" in job.output(), (fault, job.output())
        assert not job.processes(), f"{fault}: processes are left behind"
        if ranks.LONG:
            assert Job(cluster, job.out, lines).succeed() == undisturbed, fault


@ranks.minutes
@needs_ssh
def test_every_launcher_runs_the_same(cluster: Cluster, folder: Path) -> None:
    """Byte for byte: over ssh, without it, and by the launchers of others; Slurm's is a script."""
    torchrun = documented("torchrun").replace("--nproc-per-node 8", "--nproc-per-node 1")
    slurm = documented("sbatch").replace("examples", str(ROOT / "examples"))
    lines = {
        "no-ssh": without_ssh_lines(SHORT),
        "ssh": ssh_lines(SHORT),
        "deepspeed": [(FIRST, f"{documented('deepspeed')} {SHORT}")],
        "slurm": [(FIRST, f"{slurm} {SHORT}")],
        "torchrun": [(host, f"{torchrun} {SHORT}") for host in HOSTS],
    }
    results = {}
    for name, each in lines.items():
        begin = time.monotonic()
        out = "|".join([name, "$x y"]) if "launch" in each[0][1] else name  # its words are quoted
        results[name] = Job(cluster, folder / out, each).succeed()
        print(f"{name}: {time.monotonic() - begin:.1f} s")
    assert all(got == results["no-ssh"] for got in results.values()), results.keys()


@needs_ssh
def test_a_host_that_does_not_answer(cluster: Cluster, folder: Path) -> None:
    (folder / "three").write_text((folder / "hosts").read_text() + "10.77.0.3 slots=2\n")
    ((host, line),) = ssh_lines()
    job = Job(cluster, folder / "unreachable", [(host, line.replace("hosts", "three"))])
    assert job.wait(60) == [2]
    (line,) = job.logs[0].read_text().splitlines()
    assert "no answer from 10.77.0.3 over ssh within 5 s" in line
    assert not job.out.exists()
