"""Faults of one rank among two hosts of two ranks: the job names it, and why, in bounded time.

Hosts are network namespaces joined by a cable (``helpers.cluster``). A rank is killed or stopped,
the cable is cut, the disk of the results fills up, one rank's loss becomes NaN, or one rank has
another version of a package. The moment is random within a random stage. Detection is the first
line of a process that is left; it has to name a right rank and the cause, and no line a wrong one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import yaml
from helpers.cluster import HOSTS, Cluster, fill, without
from helpers.paths import PYTHONPATH, TESTS

from campaigns.outcome import Outcome
from w2s_fast.distributed.network import free_port

TIMEOUT_S = 15.0  # of the job; a machine with other work starves a process for seconds
SLACK_S = 5.0
_POLL_S = 0.05
_PATIENCE_S = 240.0  # until the moment of a fault
_DISK = 48 << 20
HOST_OF_RANK = [host for host in HOSTS for _ in range(2)]
STAGES = ("weak", "labels", "student", "ceiling")
PROGRAM = Path(__file__).with_name("attribution_rank.py")


@dataclass(frozen=True)
class Fault:
    """A fault, where it may be injected, and what a right line says.

    Attributes:
        cause: Pattern of the cause.
        stages: Stages in which it is injected; empty: before the start.
        ranks: Ranks that may be hit.
        blamed: Ranks that a right line names if rank r is hit.
    """

    cause: str
    stages: tuple[str, ...] = STAGES
    ranks: tuple[int, ...] = (0, 1, 2, 3)
    blamed: Callable[[int], tuple[int, ...]] = lambda rank: (rank,)


_GONE = "[Cc]onnection|silent for|not been reached|[Tt]imed out|closed|reset"
FAULTS = {
    "killed": Fault(_GONE),
    "stopped": Fault("silent for|not been reached|[Tt]imed out"),
    "cut": Fault(_GONE, ranks=(2, 3), blamed=lambda rank: (2, 3)),
    "disk full": Fault("no space left", ("student", "ceiling"), (0,)),
    "NaN": Fault("the loss is nan", ("student",)),
    "version": Fault("numpy is 99.9", ()),
}


class Host:
    """A host on which ranks are forked from a process that has imported what they need."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        server = TESTS / "helpers" / "rank_server.py"
        line = f"{sys.executable} {server} {its.fileno()}"
        self.process = cluster.start(name, line, None, (its.fileno(),), PYTHONPATH=PYTHONPATH)
        its.close()

    def fork(self, args: list[str], env: dict[str, str], cwd: Path, log: Path) -> tuple[int, int]:
        """Start a rank; return its pid, and what can be read once it has ended."""
        job = {"file": str(PROGRAM), "args": args, "env": env, "cwd": str(cwd)}
        end, its_end = os.pipe()
        with log.open("wb") as out:
            socket.send_fds(self._mine, [json.dumps(job).encode()], [out.fileno(), its_end])
        os.close(its_end)
        pid = self._mine.recv(4, socket.MSG_WAITALL)
        if len(pid) != 4:
            raise RuntimeError("the server of ranks has ended")
        return int.from_bytes(pid, "little"), end

    def close(self) -> None:
        """End the server."""
        self._mine.close()
        self.process.wait()


class Job:
    """One run on all ranks."""

    def __init__(
        self, hosts: dict[str, Host], folder: Path, out: Path, env: dict[str, str]
    ) -> None:
        self.out = out
        # Not beside the results, whose disk may be full.
        self.logs = [folder / f"{out.name}.{r}.log" for r in range(len(HOST_OF_RANK))]
        port = str(free_port())
        args = ["run", "--config", "run.yaml", "--quiet", "--out", str(out)]
        self.ranks: list[tuple[int, int]] = []
        for rank, host in enumerate(HOST_OF_RANK):
            own = os.environ | {
                "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", "MASTER_ADDR": HOSTS["node-a"],
                "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "4",
                "LOCAL_RANK": str(rank % 2),
                "LOCAL_WORLD_SIZE": "2", **env,
            }  # fmt: skip
            self.ranks.append(hosts[host].fork(args, own, folder, self.logs[rank]))

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a rank, if it runs: its number may be another process's by now."""
        if self.runs(rank):
            os.kill(self.ranks[rank][0], number)

    def runs(self, rank: int) -> bool:
        """Return whether a rank has not ended."""
        return not select.select([self.ranks[rank][1]], [], [], 0)[0]

    def lines(self) -> dict[int, list[str]]:
        """Return by rank what the command printed about errors."""
        return {
            rank: [
                line
                for line in log.read_text(errors="replace").splitlines()
                if "w2s-fast: " in line
            ]
            for rank, log in enumerate(self.logs)
        }

    def ended(self) -> bool:
        """Return whether every rank has ended, as far as that is known."""
        return not any(map(self.runs, range(len(self.ranks))))

    def close(self) -> None:
        """End all ranks."""
        for rank, (_, end) in enumerate(self.ranks):
            self.kill(rank)
            os.close(end)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(path)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=False)


def _fill_disk(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb") as f:
        while True:
            f.write(bytes(1 << 16))
            f.flush()


def _settings(folder: Path) -> None:
    fill(folder)
    values = yaml.safe_load((folder / "run.yaml").read_text())
    values["weak"] = {"source": "scratch"}
    values["weak_train"] = {"lr": 1e-3, "epochs": 4, "batch_size": 16, "timeout_s": TIMEOUT_S}
    values["student_train"] |= {"zero_stage": 0, "checkpoint_every": 4, "timeout_s": TIMEOUT_S}
    values |= {"losses": ["campaigns.attribution_rank:Poisoned"], "threads": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))


def run(cases: Iterable[int], seed: int, folder: Path) -> Outcome:
    """Run the cases; the faults take turns."""
    if why := without():
        raise RuntimeError(why)
    outcome = Outcome()
    _settings(folder)
    with _disk(folder / "disk"), Cluster(folder).up() as cluster:
        hosts = {name: Host(cluster, name) for name in HOSTS}
        try:
            for index in cases:
                _case(outcome, index, seed, folder, cluster, hosts)
        finally:
            for host in hosts.values():
                host.close()
    return outcome


def _case(
    outcome: Outcome, index: int, seed: int, folder: Path, cluster: Cluster, hosts: dict[str, Host]
) -> None:
    """Run one case, and note how long the detection took and whether it was right."""
    rng = Random(f"{seed}/{index}")
    name = list(FAULTS)[index % len(FAULTS)]
    fault = FAULTS[name]
    rank, stage = rng.choice(fault.ranks), rng.choice(fault.stages or ("start",))
    out, poison = folder / "disk" / str(index), folder / f"poison-{index}"
    env = {"CAMPAIGN_POISON": str(poison), "CAMPAIGN_RANK": str(rank)}
    if name == "version":
        env["CAMPAIGN_VERSION"] = str(_other_version(folder))
    out.parent.mkdir(exist_ok=True)
    job = Job(hosts, folder, out, env)
    try:
        where = f"{name}, rank {rank}, {stage}"
        if not _wait_for(job, stage, rng):
            outcome.fail(index, f"{where}: over before: {job.lines()}")
            return
        begin = time.monotonic()
        if name == "killed":
            job.kill(rank)
        elif name == "stopped":
            job.kill(rank, signal.SIGSTOP)
        elif name == "cut":
            cluster.cable("down")
        elif name == "disk full":
            _fill_disk(folder / "disk" / "filler")
        elif name == "NaN":
            poison.touch()
        seconds = _detection(job, fault, rank, begin)
        outcome.cases += 1
        outcome.count(name)
        if seconds is not None and seconds <= TIMEOUT_S + SLACK_S:
            outcome.count("in time")
        if problem := _problem(job, fault, rank, seconds):
            outcome.fail(index, f"{where}: {problem}: {job.lines()}")
        else:
            outcome.count("right rank and cause")
    finally:
        cluster.cable("up")
        job.close()
        (folder / "disk" / "filler").unlink(missing_ok=True)
        shutil.rmtree(out, ignore_errors=True)


def _wait_for(job: Job, stage: str, rng: Random) -> bool:
    """Wait for a random moment of the stage; return whether the job still runs."""
    end = time.monotonic() + _PATIENCE_S
    while stage != "start" and not list(job.out.glob(f"cache/.{stage}-*")):
        if time.monotonic() > end or job.ended():
            return False
        time.sleep(_POLL_S)
    if stage != "start":
        time.sleep(rng.uniform(0, 0.5 if stage == "labels" else 2))
    return not any(job.lines().values())


def _detection(job: Job, fault: Fault, rank: int, begin: float) -> float | None:
    """Return the seconds until a rank that is left has printed a line; None if none did."""
    left = _left(fault, rank)
    while time.monotonic() < begin + 3 * TIMEOUT_S + 30:
        lines = job.lines()
        if any(lines[r] for r in left):
            seconds = time.monotonic() - begin
            _wait_for_all(job, left, begin)
            return seconds
        time.sleep(_POLL_S)
    return None


def _wait_for_all(job: Job, left: list[int], begin: float) -> None:
    """Wait until the ranks that are left have said what they have to say."""
    while time.monotonic() < begin + 3 * TIMEOUT_S + 30:
        if not any(map(job.runs, left)):
            return
        time.sleep(_POLL_S)


def _left(fault: Fault, rank: int) -> list[int]:
    """Return the ranks that can tell: not the lost ones; of a disk or a loss, all can."""
    blamed = fault.blamed(rank) if fault.cause == _GONE or "silent" in fault.cause else ()
    return [r for r in range(len(HOST_OF_RANK)) if r not in blamed]


def _problem(job: Job, fault: Fault, rank: int, seconds: float | None) -> str:
    if seconds is None:
        return "not detected"
    if seconds > TIMEOUT_S + SLACK_S:
        return f"detected after {seconds:.1f} s"
    lines = job.lines()
    said = [line for r in _left(fault, rank) for line in lines[r]]
    wrong = [
        line for line in said if (named := named_ranks(line)) and not named & {*fault.blamed(rank)}
    ]
    if wrong:
        return f"a wrong rank is named: {wrong[0]}"
    if not any(
        named_ranks(line) & {*fault.blamed(rank)} and re.search(fault.cause, line, re.IGNORECASE)
        for line in said
    ):
        return "no line names rank and cause"
    still = [r for r in _left(fault, rank) if job.runs(r)]
    return f"ranks {still} still run" if still else ""


def named_ranks(line: str) -> set[int]:
    """Return the ranks that a line blames: not the one that prints it."""
    text = re.sub(r" \(rank \d+ on [\w-]+\)$", "", line)
    found = re.findall(r"rank (\d+)(?: on|:)|\(rank ([\d, ]+)\)", text)
    own = re.search(r"\(rank (\d+) on [\w-]+\)$", line)
    ranks = {int(n) for one, several in found for n in (one or several).split(",")}
    return ranks or ({int(own[1])} if own and "no space left" in line else set())


def _other_version(folder: Path) -> Path:
    """Return a folder in which numpy has another version."""
    facts = folder / "versions" / "numpy-99.9.dist-info"
    facts.mkdir(parents=True, exist_ok=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 99.9\n")
    return facts.parent
