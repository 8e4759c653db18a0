"""A kernel with a race, and the same kernel without it.

``PYTHONPATH=tests python tests/helpers/races/twins.py`` prints the races of both.

The race is one that happened: all threads read a word, and one thread stores it where another warp
may still be on its way to the read.
"""

from __future__ import annotations

import json

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from helpers.races.audit import pointer, races
from helpers.races.ptx import kernels_of


@triton.jit
def close_kernel(x_ptr, out_ptr, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    """Every thread has an entry of ``out`` of its own; the word in ``x`` is for all."""
    at = tl.arange(0, BLOCK)
    out = tl.load(out_ptr + at)
    gate = tl.load(x_ptr)
    if gate != 0:
        if BARRIER:
            tl.debug_barrier()
        tl.store(x_ptr, 0.0)
        tl.store(out_ptr + at, out * gate)


def main() -> None:
    for barrier in (False, True):
        source = ASTSource(
            close_kernel,
            signature={"x_ptr": "*fp32", "out_ptr": "*fp32"}
            | {"BARRIER": "constexpr", "BLOCK": "constexpr"},
            constexprs={(2,): barrier, (3,): 128},
        )
        done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
        (kernel,) = kernels_of(done.asm["ptx"])
        found, unseen = races(kernel, [({(0, 0): pointer(0), (1, 0): pointer(1)}, {})])
        print(json.dumps({"barrier": barrier, "races": found, "unseen": unseen}))


if __name__ == "__main__":
    main()
