"""``python -m tools.machine_model.count cuda 90 RowsKernel``: compile, count and print.

One line a kernel: per element of a row instructions, exponentials, and bytes; registers, blocks and
bytes in flight of an SM; predicted milliseconds, which are arithmetic and not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.machine_model.machine import MACHINES
from tools.machine_model.prediction import Kernel, predict, to_dict

HEAD = (
    f"{'kernel':34} instr   exp  loaded shared  regs blocks in flight  "
    "predicted ms: issue, exponentials, memory, floor"
)


def kernels(backend: str, arch: int, pattern: str = "") -> Iterator[Kernel]:
    """Compile and count the kernels of a backend whose name matches a pattern."""
    if backend == "cuda":
        from tools.machine_model import cuda, sass

        with tempfile.TemporaryDirectory() as folder:
            code = sass.code_of(cuda.compile_kernels(arch, Path(folder)))
            yield from cuda.kernels_of(code, arch, pattern)
    else:
        from tools.machine_model import triton, triton_modes

        for case in triton_modes.row_modes(pattern):
            done = triton.compile_case(case, arch)
            yield triton.kernel_of(case, arch, done, triton.code_of(done))


def line(k: Kernel) -> str:
    """Return one line of the table, and one for each loop."""
    p = predict(k)
    times = [f"{1e3 * t:5.2f}" for t in (p.issue, p.exponentials, p.memory, p.floor)]
    total = (
        f"{k.name:34} {k.per_element('instructions'):5.1f} {k.per_element('exponentials'):5.2f} "
        f"{k.per_element('loaded'):7.1f} {k.per_element('shared'):6.1f} {k.registers:5} "
        f"{k.blocks:6} {k.in_flight:9} {' '.join(times)} {p.bound}-bound"
    )
    loops = [
        f"    {n.kind:6} {n.instructions / n.elements:5.1f} = {n.instructions} / {n.elements}"
        for n in k.loops
    ]
    return "\n".join([total, *loops])


def main(args: list[str]) -> int:
    """Print the counts of one backend on one architecture."""
    p = argparse.ArgumentParser(prog="python -m tools.machine_model.count")
    p.add_argument("backend", choices=("cuda", "triton"))
    p.add_argument("arch", type=int, choices=sorted(MACHINES))
    p.add_argument("pattern", nargs="?", default="", help="regular expression of kernel names")
    p.add_argument("--json", action="store_true", help="one JSON object a kernel instead")
    chosen = p.parse_args(args)
    if not chosen.json:
        print(HEAD)
    for kernel in kernels(chosen.backend, chosen.arch, chosen.pattern):
        print(json.dumps(to_dict(kernel)) if chosen.json else line(kernel), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
