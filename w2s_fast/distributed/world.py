"""The processes that run one job together, and the little they tell each other.

A job is one process, or as many as a launcher started (``torchrun``, ``deepspeed``, ``srun``). All
run the same program. Without a launcher every function here does nothing and costs nothing.
Messages are JSON and tensors; nothing is pickled.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from w2s_fast.distributed.network import free_port, interface_to
from w2s_fast.errors import W2SError

if TYPE_CHECKING:
    from torch import Tensor

# launcher -> (rank, size, rank on this host)
_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun, deepspeed
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),  # srun
)
DEFAULT_PORT = 29500
_BUCKET = 25_000_000  # gradients summed in one exchange


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank: its number, from 0; rank 0 writes results and talks to the user.
        size: number of processes.
        local_rank: its number on this host.
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
        """What messages call this process: ``rank 3 on node-b``."""
        return f"rank {self.rank} on {socket.gethostname()}"

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(_bytes(b"\0"))  # through gloo on every device; a barrier would need one

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """What ``root`` passed, on every process. ``value`` is JSON; others may pass anything."""
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

    def all_gather_object(self, value: Any) -> list[Any]:
        """The JSON value of every process, by rank, on every process."""
        if self.size == 1:
            return [value]
        return [self.broadcast_object(value, root) for root in range(self.size)]

    def sum(self, t: Tensor) -> Tensor:
        """The sum of ``t`` over all processes, on every process; ``t`` itself if there is one."""
        if self.size == 1:
            return t
        import torch.distributed as dist

        total = t.detach().clone()
        dist.all_reduce(total)
        return total

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over all processes, a bucket of them at a time."""
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
        """Rows of all processes: row 0 of every rank, then row 1 of every rank, and so on.

        That is the order of the whole batch where rank r holds rows r, r + size, r + 2 size, ....
        Every process brings the same number of rows.
        """
        if self.size == 1:
            return t
        import torch.distributed as dist

        parts = t.new_empty((self.size * len(t), *t.shape[1:]))
        # torch 2.13 renamed it, and warns of the old name
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(parts, t.contiguous())
        return parts.view(self.size, *t.shape).transpose(0, 1).flatten(0, 1)

    def broadcast(self, t: Tensor, root: int) -> Tensor:
        """``t`` of ``root``, in the place of everyone's ``t``; CPU, contiguous, any dtype."""
        if self.size > 1 and t.numel():
            import torch
            import torch.distributed as dist

            dist.broadcast(t.view(-1).view(torch.uint8), root)
        return t


SINGLE_PROCESS = World()
_world = SINGLE_PROCESS


def get_world() -> World:
    """The processes of this job; one, until ``init_distributed`` found more."""
    return _world


def world_from_environment(env: Mapping[str, str] = os.environ) -> World | None:
    """What a launcher says of this process, or None if there was none.

    Raises:
        W2SError: if it says something impossible.
    """
    for names in _VARIABLES:
        given = [env.get(name) for name in names]
        if given[0] is None or given[1] is None:
            continue
        if names[0] == "SLURM_PROCID" and "SLURM_STEP_ID" not in env:
            continue  # a batch script's own shell: nobody else was started
        try:
            rank, size, local = (int(x or 0) for x in given)
        except ValueError as e:
            raise W2SError(f"{', '.join(names)} are {given}; expected whole numbers") from e
        if not 0 <= rank < size:
            raise W2SError(f"{names[0]} is {rank}; expected 0..{names[1]} - 1 = {size - 1}")
        return World(rank, size, local)
    return None


def init_distributed(timeout_s: float, env: Mapping[str, str] = os.environ) -> World:
    """Meet the other processes a launcher started; alone without one.

    Args:
        timeout_s: how long to wait for the others, here and in every later exchange.
        env: the launcher's variables.

    Raises:
        W2SError: if they do not come, or the address cannot be used.
    """
    global _world
    found = world_from_environment(env)
    if found is None or _world.size > 1:
        return _world
    init_process_group(found, _address(env), timeout_s)
    _world = found
    return found


def init_process_group(world: World, address: tuple[str, int], timeout_s: float) -> None:
    """Make the process group of ``here``; rank 0 (or the launcher) listens on ``address``.

    Raises:
        W2SError: see ``init_distributed``.
    """
    import torch
    import torch.distributed as dist

    host, port = address
    if name := interface_to(host, port):
        # Left to itself gloo takes the interface of the host's own name, loopback where that name
        # is not known.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    values = (world.rank, world.size, world.local_rank, host, port)
    os.environ.update(zip(names, map(str, values), strict=True))  # deepspeed reads them too
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError, OSError) as e:
        raise W2SError(_no_meeting(world, host, port, timeout_s, e)) from e


def ensure_process_group(timeout_s: float) -> None:
    """A process group of this process alone, for libraries that want one; nothing if there is one.

    Raises:
        W2SError: see ``init_distributed``.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        init_process_group(SINGLE_PROCESS, ("127.0.0.1", free_port()), timeout_s)


def exit_process(code: int) -> int:
    """Exit code of this program; a process of several ends here and now.

    The threads of its exchanges are not waited for, which at times aborts a process that had done
    all its work: everything must be written, and nobody may expect an answer any more.
    """
    if _world.size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def limit_collective_timeouts(timeout_s: float) -> None:
    """Let no exchange wait longer than this, in groups that libraries made, too.

    Groups made without a timeout wait for half an hour when a link is cut.
    """
    import torch.distributed.distributed_c10d as c10d

    if _world.size == 1:
        return
    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def local_world_size(env: Mapping[str, str] = os.environ) -> int:
    """How many processes of this job the launcher started on this host; 1 if it does not say."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"):
        if env.get(name, "").isdecimal():
            return max(1, int(env[name]))
    return 1


def _address(env: Mapping[str, str]) -> tuple[str, int]:
    host, port = env.get("MASTER_ADDR"), env.get("MASTER_PORT", str(DEFAULT_PORT))
    if host is None:
        raise W2SError("MASTER_ADDR is not set; expected the address of the host of rank 0")
    if not port.isdecimal():
        raise W2SError(f"MASTER_PORT is {port!r}; expected a number")
    return host, int(port)


def _no_meeting(world: World, host: str, port: int, timeout_s: float, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return f"port {port} on {host} is taken; stop what listens there or set MASTER_PORT"
    return (
        f"{world.name} did not meet the other {world.size - 1} processes at {host}:{port} within "
        f"{timeout_s:g} s ({text[:160]}); are all hosts up, and does every one reach {host}?"
    )


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype and together about ``_BUCKET`` entries."""
    bucket: list[Tensor] = []
    for t in tensors:
        full = sum(b.numel() for b in bucket) + t.numel() > _BUCKET
        if bucket and (full or t.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(t)
    if bucket:
        yield bucket


def _bytes(data: bytes) -> Tensor:
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()
