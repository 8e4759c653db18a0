"""The processes of one job and their collective calls.

A job is one process, or as many as a launcher started (``torchrun``, ``deepspeed``, ``srun``), all
running the same program. Without a launcher the collective calls return at once. Messages are JSON
and tensors; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from w2s_fast.distributed.network import free_port, interface_to, wait_for_listener
from w2s_fast.errors import W2SError, one_line

if TYPE_CHECKING:
    from torch import Tensor

# Variables with (rank, size, rank on this host), by launcher.
_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun, deepspeed
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),  # srun
)
DEFAULT_PORT = 29500
_BUCKET_ENTRIES = 25_000_000  # gradients summed in one all-reduce
_WAITING_S = 0.5  # between two messages of a rank 0 that works alone


@dataclass(frozen=True)
class World:
    """Rank of this process and number of processes.

    Attributes:
        rank: number of this process, from 0; rank 0 writes results and messages to the user.
        size: number of processes.
        local_rank: number of this process on its host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """Name of this process in messages: ``rank 3 on node-b``."""
        return f"rank {self.rank} on {socket.gethostname()}"

    def barrier(self) -> None:
        """Wait until every process has made this call."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(_bytes(b"\0"))  # dist.barrier would need a device; this uses gloo

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """Return the JSON value of ``root`` on every process; others may pass anything."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        text = _bytes(json.dumps(value).encode()) if self.rank == root else _bytes(b"")
        length = torch.tensor([len(text)])
        dist.broadcast(length, root)
        text = text if self.rank == root else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, root)
        return json.loads(text.numpy().tobytes())

    def call_on_main(self, function: Callable[[], Any]) -> Any:
        """Call a function on rank 0 and return its JSON value on every process.

        The others wait for as long as it takes, not for the timeout of a collective call: rank 0
        keeps telling them that it works. The function makes no collective call.

        Raises:
            W2SError: The function raised it; every process then raises it.
        """
        if self.size == 1:
            return function()
        if self.is_main_process:
            value, error = None, ""
            with self._others_wait():
                try:
                    value = function()
                except W2SError as err:
                    error = str(err)
            value, error = self.broadcast_object([value, error])
        else:
            while (message := self.broadcast_object(None)) is None:
                pass
            value, error = message
        if error:
            raise W2SError(error)
        return value

    @contextlib.contextmanager
    def _others_wait(self) -> Iterator[None]:
        """Broadcast None from time to time until the block ends."""
        done = threading.Event()

        def tell() -> None:
            while not done.wait(_WAITING_S):
                try:
                    self.broadcast_object(None)
                except RuntimeError:  # a process is lost; the next collective call says so
                    return

        thread = threading.Thread(target=tell, name="w2s-others-wait", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the JSON values of all processes, by rank, on every process."""
        if self.size == 1:
            return [value]
        return [self.broadcast_object(value, root) for root in range(self.size)]

    def sum(self, t: Tensor) -> Tensor:
        """Return the sum of ``t`` over all processes; ``t`` itself if there is one process."""
        if self.size == 1:
            return t
        import torch.distributed as dist

        total = t.detach().clone()
        dist.all_reduce(total)
        return total

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over all processes, one bucket of tensors at a time."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        for bucket in _buckets(tensors):
            flat = torch.cat([t.flatten() for t in bucket])
            dist.all_reduce(flat)
            parts = flat.split([t.numel() for t in bucket])
            for t, part in zip(bucket, parts, strict=True):
                t.copy_(part.view_as(t))

    def all_gather(self, t: Tensor) -> Tensor:
        """Return the rows of all processes: row 0 of every rank, then row 1 of every rank, ....

        That is the order of a batch of which rank r holds rows r, r + size, r + 2 size, .... Every
        process passes the same number of rows.
        """
        if self.size == 1:
            return t
        import torch.distributed as dist

        parts = t.new_empty((self.size * len(t), *t.shape[1:]))
        # torch 2.13 renamed the function and warns about the old name
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(parts, t.contiguous())
        return parts.view(self.size, *t.shape).transpose(0, 1).flatten(0, 1)

    def broadcast(self, t: Tensor, root: int) -> Tensor:
        """Overwrite ``t`` with that of ``root`` and return it; CPU, contiguous, any dtype."""
        if self.size > 1 and t.numel():
            import torch
            import torch.distributed as dist

            dist.broadcast(t.view(-1).view(torch.uint8), root)
        return t


SINGLE_PROCESS = World()
_world = SINGLE_PROCESS


def get_world() -> World:
    """Return the processes of this job; a single one before ``init_distributed``."""
    return _world


def world_from_environment(env: Mapping[str, str] = os.environ) -> World | None:
    """Read this process's rank from the launcher's variables; None without a launcher.

    Raises:
        W2SError: if they are not valid.
    """
    for names in _VARIABLES:
        given = [env.get(name) for name in names]
        if given[0] is None or given[1] is None:
            continue
        if names[0] == "SLURM_PROCID" and "SLURM_STEP_ID" not in env:
            continue  # the shell of a batch script, not a task that srun started
        try:
            rank, size, local = (int(x or 0) for x in given)
        except ValueError as e:
            raise W2SError(f"{', '.join(names)} are {given}; expected whole numbers") from e
        if not 0 <= rank < size:
            raise W2SError(f"{names[0]} is {rank}; expected 0..{names[1]} - 1 = {size - 1}")
        return World(rank, size, local)
    return None


def init_distributed(timeout_s: float, env: Mapping[str, str] = os.environ) -> World:
    """Join the process group of the job; a job of one process needs none.

    Args:
        timeout_s: time limit of this call and of every later collective call.
        env: the launcher's variables.

    Returns:
        The processes of this job.

    Raises:
        W2SError: if a process does not join in time, or the address cannot be used.
    """
    global _world
    world = world_from_environment(env)
    if world is None or world.size == 1 or _world.size > 1:
        return _world
    init_process_group(world, _address(env), timeout_s)
    _world = world
    return world


def init_process_group(world: World, address: tuple[str, int], timeout_s: float) -> None:
    """Create the process group of ``world``; rank 0 (or the launcher) listens on ``address``.

    Raises:
        W2SError: see ``init_distributed``.
    """
    import torch
    import torch.distributed as dist

    host, port = address
    if name := interface_to(host, port):
        # By default gloo takes the interface that the host name resolves to, which may be loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    backend = "gloo"
    if torch.cuda.is_available():
        if world.local_rank >= torch.cuda.device_count():
            raise W2SError(
                f"{world.name} is process {world.local_rank + 1} of its host and sees "
                f"{torch.cuda.device_count()} GPUs; start one process for each GPU, and let each "
                "see all of them (CUDA_VISIBLE_DEVICES)"
            )
        torch.cuda.set_device(world.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    values = (world.rank, world.size, world.local_rank, host, port)
    os.environ.update(zip(names, map(str, values), strict=True))  # DeepSpeed reads them too
    try:
        if world.rank:  # torch would wait for the listener two to three times as long
            wait_for_listener(host, port, timeout_s)
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError, OSError) as e:
        raise W2SError(_failure_message(world, host, port, timeout_s, e)) from e


def ensure_process_group(timeout_s: float) -> None:
    """Create a process group of this process alone, for libraries that need one, if none exists.

    Raises:
        W2SError: see ``init_distributed``.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        init_process_group(SINGLE_PROCESS, ("127.0.0.1", free_port()), timeout_s)


def exit_process(code: int) -> int:
    """Return the exit code; one of several processes exits at once.

    Waiting for the threads of its collective calls sometimes aborts a process that has finished its
    work. Everything must be written before this call, and no collective call may be pending.
    """
    if _world.size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def limit_collective_timeouts(timeout_s: float) -> None:
    """Set the timeout of every process group, including those that libraries made.

    Without a timeout a group waits for half an hour when a link is cut.
    """
    import torch.distributed.distributed_c10d as c10d

    if _world.size == 1:
        return
    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def local_world_size(env: Mapping[str, str] = os.environ) -> int:
    """Return how many processes of this job run on this host; 1 if the launcher does not say."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"):
        if env.get(name, "").isdecimal():
            return max(1, int(env[name]))
    return 1


def _address(env: Mapping[str, str]) -> tuple[str, int]:
    host, port = env.get("MASTER_ADDR"), env.get("MASTER_PORT", str(DEFAULT_PORT))
    if host is None or not host.strip():
        raise W2SError("MASTER_ADDR is not set; expected the address of the host of rank 0")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise W2SError(f"MASTER_PORT is {port!r}; expected a number, 1 to 65535")
    return host, int(port)


def _failure_message(world: World, host: str, port: int, timeout_s: float, error: Exception) -> str:
    text = one_line(error, 160)
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return f"port {port} on {host} is in use; stop what listens there or set MASTER_PORT"
    return (
        f"{world.name} did not connect to the other {world.size - 1} processes at {host}:{port} "
        f"within {timeout_s:g} s ({text}); are all hosts up, and can each reach {host}?"
    )


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors of one dtype, with about ``_BUCKET_ENTRIES`` entries in each group."""
    bucket: list[Tensor] = []
    for t in tensors:
        full = sum(b.numel() for b in bucket) + t.numel() > _BUCKET_ENTRIES
        if bucket and (full or t.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(t)
    if bucket:
        yield bucket


def _bytes(data: bytes) -> Tensor:
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()
