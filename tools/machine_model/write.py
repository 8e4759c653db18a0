"""``python -m tools.machine_model.write``: compile every kernel and write docs/machine_model.md.

Needs nvcc and the Triton wheel, no GPU; takes some minutes. Tests compare the rows of the kernels
that they compile, where the compilers are the versions that the page names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from tools.machine_model.count import kernels
from tools.machine_model.cuda import nvcc_version
from tools.machine_model.machine import MACHINES, Machine
from tools.machine_model.prediction import BOUND, CLASSES, ISSUED, ROWS, Kernel, predict

PAGE = Path(__file__).resolve().parents[2] / "docs" / "machine_model.md"
LEAST_CLASSES = 16_384  # below, launches and last waves decide, which the model leaves out
HEAD = """# Predicted times of the GPU kernels

**Predicted, not measured.** Nothing on this page was timed on a GPU. `tools/machine_model` compiles
every row kernel, reads its machine code, and counts what a row executes; the times are arithmetic.
`make machine-model` writes this page. Rows that were measured are in [speed.md](speed.md).

Compiled with nvcc {nvcc} and Triton {triton}.

## How a time is predicted

- The main loops of a kernel come from the control flow graph: `fetch` copies the row to shared
  memory, `pass` reads it, `write` stores the gradient. An iteration takes the path that moves the
  most 16-byte vectors, and of those the shortest: the interior of a row. The peeled ends of a row,
  a maximum that grows, soft-caps of CUDA kernels and NaN are off that path.
- The elements of an iteration are the least that its loads, its stores and its exponentials cover.
  Everything in the tables is for one element of the row, summed over the loops.
- The predicted time is the largest of three: all instructions at {issued:.0f} % of the issue slots
  (real kernels rarely reach more), exponentials at the rate of the special function unit, and the
  bytes of global memory at full bandwidth. A row that is read twice comes from L2 the second time
  as far as the rows in progress, on average half a row a block, fit it.
- The floor is the time of the bytes that no kernel can avoid: logits and dense labels read once,
  the gradient written once. A kernel is called memory-bound if it is predicted to take at most
  {bound:.2f} of the floor, and cache-bound if reading rows again takes longest.
- In flight are the bytes that the loads of an SM can have on the way: the loads of one iteration of
  all threads, or the whole part of a row that a block copies. Little's law asks for bandwidth x
  latency / SMs, here with 800 ns.

Left out: launches, partly filled last waves, latencies of prologues and reductions, clocks below
those of the table, bank conflicts, and the quantile kernels, whose atomics depend on the scores.

| GPU | SMs | assumed clock, GHz | memory, TB/s | L2, MiB | needed in flight, KB an SM |
| --- | ---: | ---: | ---: | ---: | ---: |
{machines}

Times are for logits of {rows} x {classes}, unless the mode names another number of classes. A
CUDA kernel computes the loss alone, the entropy too, or leaves smoothing and soft-caps to branches
(`all`); `rows dense` of Triton has smoothing, and `plain` has none. `FixupKernel`, `fixup`,
`ScaleKernel` and `scale` are given as if they rescaled every row, which they seldom do. Modes whose
arrays lie out of step move single elements and are not listed.
"""
COLUMNS = (
    "kernel", "instructions (fetch + pass + write)", "exponentials", "bytes loaded",
    "bytes of shared memory", "registers", "blocks an SM", "KB in flight", "issue, ms",
    "exponentials, ms", "memory, ms", "floor, ms", "predicted, ms",
    "bound by",
)  # fmt: skip


def page(counted: Iterable[Kernel]) -> str:
    """Return the whole document."""
    all_kernels = list(counted)
    machines = "\n".join(_machine(m) for m in MACHINES.values())
    text = HEAD.format(
        nvcc=nvcc_version(), triton=version("triton"), issued=100 * ISSUED, bound=BOUND,
        machines=machines, rows=ROWS, classes=CLASSES,
    )  # fmt: skip
    for arch, machine in MACHINES.items():
        text += f"\n## {machine.name} (sm_{arch}), predicted\n\n"
        text += f"| {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * (len(COLUMNS) - 2)} --- |\n"
        text += "".join(f"{row(k)}\n" for k in all_kernels if k.arch == arch and is_listed(k))
    return text


def is_listed(kernel: Kernel) -> bool:
    """Whether a kernel goes through long rows in vectors, so that the model applies."""
    loaded, stored = kernel.per_element("loaded"), kernel.per_element("stored")
    whole = loaded >= kernel.streams.read and stored >= kernel.streams.written
    return whole and kernel.classes > LEAST_CLASSES


def row(kernel: Kernel) -> str:
    """Return the row of one kernel."""
    p = predict(kernel)
    parts = [n.instructions / n.elements for n in kernel.loops]
    each = " + ".join(f"{part:.1f}" for part in parts)
    cells = [
        f"{kernel.backend} `{kernel.name}`",
        f"{sum(parts):.1f}" + (f" ({each})" if len(parts) > 1 else ""),
        f"{kernel.per_element('exponentials'):.2f}",
        f"{kernel.per_element('loaded'):.0f}",
        f"{kernel.per_element('shared'):.0f}",
        f"{kernel.registers}",
        f"{kernel.blocks}",
        f"{kernel.in_flight / 1000:.0f}",
        *(f"{1e3 * t:.2f}" for t in (p.issue, p.exponentials, p.memory, p.floor, p.time)),
        p.bound,
    ]
    return f"| {' | '.join(cells)} |"


def _machine(m: Machine) -> str:
    cells = (m.sms, f"{m.clock / 1e9:.3f}", f"{m.bandwidth / 1e12:.1f}", m.l2 // 2**20)
    needed = f"{m.bytes_needed / 1000:.0f}"
    return f"| {m.name} (sm_{m.arch}) | {' | '.join(map(str, cells))} | {needed} |"


def main() -> int:
    """Write the document."""
    counted = [k for a in MACHINES for b in ("cuda", "triton") for k in kernels(b, a)]
    PAGE.write_text(page(counted))
    print("docs/machine_model.md: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
