"""The GPUs that the model knows, and how many blocks of a kernel fit a multiprocessor (SM)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """One GPU.

    Numbers of SMs, memory and L2 are of NVIDIA's data sheets; the limits of an SM and its rate of
    special functions are of the CUDA programming guide. Clock and latency are assumptions.

    Attributes:
        arch: compute capability times ten.
        sms: multiprocessors.
        clock: that an SM is assumed to hold under load, in Hz.
        bandwidth: of global memory, in bytes a second.
        l2: bytes of the L2 cache.
        shared: bytes of shared memory of an SM that blocks share.
        latency: that a load from global memory is assumed to have under load, in seconds.
        issue: instructions that an SM issues a clock, each for 32 threads.
        special: results of the special function unit (exponentials) an SM and clock.
        registers, threads, blocks: most of an SM.
    """

    name: str
    arch: int
    sms: int
    clock: float
    bandwidth: float
    l2: int
    shared: int
    latency: float = 800e-9
    issue: int = 4
    special: int = 16
    registers: int = 65536
    threads: int = 2048
    blocks: int = 32

    @property
    def bytes_needed(self) -> float:
        """Bytes that an SM must have on the way to reach the bandwidth (Little's law)."""
        return self.bandwidth * self.latency / self.sms

    def blocks_of(self, registers: int, threads: int, shared: int) -> int:
        """Return how many blocks run on an SM at once; 0 if one does not fit.

        Args:
            registers: of a thread; they are given to warps in units of 256.
            threads: of a block.
            shared: bytes of a block, without the 1024 that the system keeps for each.
        """
        warp = -(-registers * 32 // 256) * 256
        return min(
            self.registers // (warp * -(-threads // 32)),
            self.threads // threads,
            self.shared // (shared + 1024),
            self.blocks,
        )


A100 = Machine("A100", 80, 108, 1.41e9, 2.039e12, 40 * 2**20, 164 * 1024)
H200 = Machine("H200", 90, 132, 1.755e9, 4.8e12, 50 * 2**20, 228 * 1024)
B200 = Machine("B200", 100, 148, 1.85e9, 8.0e12, 126 * 2**20, 228 * 1024)
MACHINES = {m.arch: m for m in (A100, H200, B200)}
