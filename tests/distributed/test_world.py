"""Processes of a job: what launchers say, exchanges, and what happens when one is lost."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ranks

from w2s_fast.config import RunConfig
from w2s_fast.distributed.heartbeat import EXIT_CODE, LostError, monitor_processes, print_stderr
from w2s_fast.distributed.world import (
    SINGLE_PROCESS,
    World,
    exit_process,
    init_distributed,
    init_process_group,
    local_world_size,
    world_from_environment,
)
from w2s_fast.errors import W2SError
from w2s_fast.pipeline.preflight import difference, process_facts, tree_digest

MEETING_S = 3.0
ALONE_S = 4.0  # timeout of collective calls


def test_launchers() -> None:
    assert world_from_environment({}) is None
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert world_from_environment(torchrun) == World(3, 8, 1)
    slurm = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
    assert world_from_environment(slurm) is None  # the batch script itself
    assert world_from_environment(slurm | {"SLURM_STEP_ID": "0"}) == World(2, 4, 0)
    with pytest.raises(W2SError, match="RANK is 8; expected 0..WORLD_SIZE - 1 = 7"):
        world_from_environment(torchrun | {"RANK": "8"})
    with pytest.raises(W2SError, match="expected whole numbers"):
        world_from_environment(torchrun | {"WORLD_SIZE": "many"})
    assert local_world_size({"LOCAL_WORLD_SIZE": "4"}) == 4 and local_world_size({}) == 1


def test_what_is_compared(tmp_path: Path) -> None:
    cfg, data = RunConfig(), {0: {"test": "a"}}
    same = process_facts(cfg, data, {"/m": "1"})
    for other, names in (
        (process_facts(cfg, data, {"/m": "1"}), set()),
        (process_facts(cfg, {0: {"test": "b"}}, {"/m": "1"}), {"data"}),
        (process_facts(replace(cfg, seeds=(7,)), data, {"/m": "1"}), {"configuration"}),
        (process_facts(cfg, data, {"/m": "2"}), {"the checkpoint /m"}),
    ):
        assert {name for name in same if other[name] != same[name]} == names
    (tmp_path / "a.py").write_text("x = 1")
    before = tree_digest(tmp_path)
    (tmp_path / "a.py").write_text("x = 2")
    assert tree_digest(tmp_path) != before
    assert {"torch", "deepspeed", "w2s_fast's source", "device"} < same.keys()


def test_alone_nothing_is_exchanged() -> None:
    t = torch.arange(3)
    assert (
        SINGLE_PROCESS.all_gather(t) is t
        and SINGLE_PROCESS.sum(t) is t
        and SINGLE_PROCESS.broadcast(t, 0) is t
    )
    assert SINGLE_PROCESS.broadcast_object({"a": 1}) == {
        "a": 1
    } and SINGLE_PROCESS.all_gather_object(5) == [5]
    SINGLE_PROCESS.all_reduce([t])
    SINGLE_PROCESS.barrier()
    with monitor_processes(SINGLE_PROCESS, 1.0):
        pass
    assert init_distributed(1.0, {}) is SINGLE_PROCESS
    with pytest.raises(W2SError, match="MASTER_ADDR is not set"):
        init_distributed(1.0, {"RANK": "0", "WORLD_SIZE": "2"})
    env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "http"}
    with pytest.raises(W2SError, match="MASTER_PORT is 'http'"):
        init_distributed(1.0, env)


@pytest.mark.parametrize(
    "env",
    [
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"},
    ],
    ids=["torchrun", "interactive Slurm"],
)
def test_a_job_of_one_process_needs_no_process_group(env: dict[str, str]) -> None:
    """A second run in the process would initialise it twice; Slurm's shell names no address."""
    for _ in range(2):
        assert init_distributed(5, env) == SINGLE_PROCESS
        assert not torch.distributed.is_initialized()


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's message would be of an invalid device ordinal."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(W2SError, match="process 3 of its host and sees 2 GPUs; start one"):
        init_process_group(World(2, 4, 2), ("127.0.0.1", 1), 1)


def test_who_differs() -> None:
    same = {"torch": "2.13", "data": "abc"}
    everyone: list[Any] = [["a", same], ["a", same], ["b", same | {"torch": "2.12"}], ["b", same]]
    assert difference(everyone) == (
        "torch is 2.12 on b (rank 2), 2.13 elsewhere; make them the same"
    )
    everyone[2] = ["b", same]
    assert difference(everyone) == ""
    everyone[0] = ["a", same | {"data": "xyz"}]
    assert "data is xyz on a (rank 0), abc elsewhere" in difference(everyone)
    everyone[0] = ["a", same]
    everyone[2] = ["b", same | {"the checkpoint /m": "123"}]
    assert "the checkpoint /m is 123 on b (rank 2), missing elsewhere" in difference(everyone)


@pytest.mark.slow
@pytest.mark.dist
def test_exchanges() -> None:
    ranks.run(__file__, 3, {"part": "exchanges"})


@pytest.mark.slow
@pytest.mark.dist
def test_what_rank_0_does_alone_may_outlast_the_timeout() -> None:
    """Of a collective call, as the hash of a large stage does; an error is everyone's."""
    ranks.run(__file__, 3, {"part": "alone"})


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize(
    "fault", ["error", "crash", "killed", "stopped", "unguarded", "first", "unguarded first"]
)
def test_the_others_end_and_name_it(fault: str) -> None:
    """Three processes in a loop of exchanges; one fails, dies or hangs. Unguarded it stays, and
    nothing but its silence tells; the first has the store of all. Importing would take most of the
    time: one fault alone meets processes that a launcher has started, and forks are lost in the
    same ways."""
    job = json.dumps({"part": "lost", "fault": fault})
    found = ranks.start(__file__, 3, job, fresh=fault == "killed")
    lost = 0 if fault.endswith("first") else 1
    hangs = fault.startswith(("stopped", "unguarded"))
    for p in found:
        assert p.stdout is not None
        while "looping" not in p.stdout.readline():
            assert p.poll() is None
    begin = time.monotonic()
    if fault not in ("error", "crash"):
        if fault.startswith("unguarded"):
            children = Path(f"/proc/{found[lost].pid}/task/{found[lost].pid}/children").read_text()
            os.kill(int(children), signal.SIGKILL)
        os.kill(found[lost].pid, signal.SIGSTOP if hangs else signal.SIGKILL)
    try:
        told = {r: p.communicate(timeout=60)[0] for r, p in enumerate(found) if r != lost}
        if fault.startswith("unguarded"):
            found[lost].kill()
        outputs = [told.get(r) or p.communicate(timeout=60)[0] for r, p in enumerate(found)]
    finally:
        for p in found:
            p.kill()
    assert time.monotonic() - begin < 20
    for rank, (p, text) in enumerate(zip(found, outputs, strict=True)):
        if rank != lost:
            assert p.returncode == EXIT_CODE, (rank, text)
            assert f"lost rank {lost} on " in text, (rank, text)
        else:
            assert p.returncode == {"error": 2, "crash": 1}.get(fault, p.returncode) != 0
    if fault in ("error", "crash"):
        assert all("the shard is half-written" in text for text in outputs)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("rank", [0, 1])
def test_nobody_comes(rank: int) -> None:
    """A rank that is alone ends in time, whether it waits for others to connect or for rank 0."""
    processes = ranks.start(__file__, 2, json.dumps({"part": "meet"}), fresh=True)
    processes[1 - rank].kill()
    text, _ = processes[rank].communicate(timeout=60)
    assert "did not connect to the other 1 processes" in text
    assert float(text.splitlines()[-1]) < MEETING_S + 3


def _exchanges(world: World) -> None:
    r = world.rank
    assert world.broadcast_object({"from": r}, root=1) == {"from": 1}
    assert world.all_gather_object([r, "x"]) == [[0, "x"], [1, "x"], [2, "x"]]
    assert world.sum(torch.tensor([r, 1.0])).tolist() == [3.0, 3.0]
    # Rank r holds rows r, r + 3 of the batch 0..5.
    assert world.all_gather(torch.tensor([r, r + 3])).tolist() == [0, 1, 2, 3, 4, 5]
    assert world.all_gather(torch.full((2, 4), float(r))).shape == (6, 4)
    many = [torch.full((2, 2), float(r)), torch.tensor(1.0), torch.tensor(1, dtype=torch.float64)]
    world.all_reduce(many)
    assert many[0].tolist() == [[3.0, 3.0], [3.0, 3.0]] and float(many[2]) == 3
    t = torch.full((3,), float(r), dtype=torch.bfloat16)
    assert world.broadcast(t, 2).tolist() == [2.0] * 3
    assert world.broadcast(torch.empty(0), 0).numel() == 0


def _alone(world: World) -> None:
    called = []

    def slow(error: str = "") -> dict[str, int]:
        called.append(error)
        time.sleep(2.5 * ALONE_S)
        if error:
            raise W2SError(error)
        return {"rank": world.rank}

    assert world.call_on_main(slow) == {"rank": 0}
    with pytest.raises(W2SError, match="the disk is full"):
        world.call_on_main(lambda: slow("the disk is full"))
    assert called == (["", "the disk is full"] if world.is_main_process else [])
    assert [world.call_on_main(lambda i=i: i) for i in range(50)] == list(range(50))
    assert world.sum(torch.ones(1)).tolist() == [3.0]  # no message is left over


def _lost(world: World, fault: str) -> None:
    with monitor_processes(world, 3.0):
        print("looping", flush=True)
        end = time.monotonic() + 40
        while time.monotonic() < end:
            try:
                world.sum(torch.ones(10))
            except RuntimeError as e:
                raise RuntimeError("words that no library has used before") from e
            time.sleep(0.01)
            if fault in ("error", "crash") and world.rank == 1:
                time.sleep(1)
                kind = W2SError if fault == "error" else RuntimeError
                raise kind("the shard is half-written")


def _meet() -> None:
    begin = time.monotonic()
    try:
        init_distributed(MEETING_S)
    except W2SError as e:
        print(e, time.monotonic() - begin, sep="\n")


def main(job: dict[str, Any]) -> int:
    if job["part"] == "meet":
        _meet()
        return 0
    world = init_distributed(ALONE_S if job["part"] == "alone" else 20.0)
    if part := {"exchanges": _exchanges, "alone": _alone}.get(job["part"]):
        part(world)
        return 0
    try:
        _lost(world, job["fault"])
    except LostError as e:
        print_stderr(str(e))
        os._exit(EXIT_CODE)
    except (W2SError, RuntimeError) as e:
        print_stderr(str(e))
        os._exit(2 if isinstance(e, W2SError) else 1)
    return 0


if __name__ == "__main__":
    sys.exit(exit_process(main(json.loads(sys.argv[1]))))
