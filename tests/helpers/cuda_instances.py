"""Some of the CUDA kernels, compiled for an architecture that the library is not built for.

A whole library takes a minute of a core an architecture. These are the modes with limits, of all
other kernels one, and two more of those that use every register they may. The sources are compiled
as they are up to the line that instantiates the rest, and the machine code is the same.
"""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers import machine_limits
from tools.machine_model import cuda

FOLDER = cuda.SOURCE.parent
ROWS = "(const __grid_constant__ RowCall, const __grid_constant__ Tiling)"
# All registers of a thread: rows of dense labels, read once and read twice.
FULL = ("RowsKernel<BF16, BF16, true, kWithEntropy>", "RowsKernel<BF16, BF16, false, kEverything>")
OTHERS = {
    "contrastive": ("contrastive_kernel<BF16>(const __grid_constant__ Contrastive)",),
    "quantile": ("quantile_kernel<BF16>(const __grid_constant__ Quantile)",),
    "two_class": (
        "two_class_kernel<BF16, None>(const __grid_constant__ TwoClass)",
        "two_class_gradient_kernel<BF16, None>(const __grid_constant__ TwoClass)",
    ),
}
WORK = {"loss": "kLossOnly", "entropy": "kWithEntropy", "all": "kEverything"}


def instances(arch: int) -> dict[str, list[str]]:
    """Source -> the kernels that are compiled of it."""
    limited = [name for name, at in sorted(machine_limits.launched("cuda")) if at == arch]
    rows = dict.fromkeys([*(row_kernel(name, arch) for name in limited), *FULL])
    return {cuda.SOURCE.stem: [f"kernel<{name}>{ROWS}" for name in rows]} | {
        source: list(kernels) for source, kernels in OTHERS.items()
    }


def row_kernel(mode: str, arch: int) -> str:
    """C++ of a mode as it is launched for 128256 classes: from sm_90 on, clusters keep a row."""
    family, _, arguments = mode.rstrip(">").partition("<")
    words = [WORK.get(word, word) for word in arguments.split(", ")]
    if family == "RowsKernel":
        words.insert(2, "true" if arch >= 90 else "false")
    return f"{family}<{', '.join(words)}>"


def compile_instances(arch: int, folder: Path) -> list[Path]:
    """Compile them for ``sm_<arch>``, two sources at a time."""

    def compile_one(stem: str, kernels: list[str]) -> Path:
        source, cubin = folder / f"{stem}.cu", folder / f"{stem}.cubin"
        source.write_text(instantiated((FOLDER / source.name).read_text(), kernels))
        # Without warnings: much of what the launches use is left over.
        flags = [*cuda.FLAGS, "-w", "-cubin", f"-arch=sm_{arch}", "-I", str(FOLDER)]
        subprocess.run([*cuda.nvcc(), *flags, "-o", str(cubin), str(source)], check=True)
        return cubin

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, *zip(*instances(arch).items(), strict=True)))


def instantiated(text: str, kernels: list[str]) -> str:
    """A source that instantiates these kernels in place of those that its launches need."""
    head, *rest = re.split(r'^#include "\w*launch\.h"$', text, flags=re.M)
    assert len(rest) == 1
    lines = [f"template __global__ void {kernel};" for kernel in kernels]
    opened = "namespace w2s {\nnamespace cuda {\nnamespace {"
    return "\n".join([head, opened, *lines, "}\n}\n}\n"])
