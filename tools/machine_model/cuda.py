"""The CUDA row kernels: compiled, or taken from a built library, and counted.

Needs c++filt of the binutils beside the disassemblers of the Triton wheel.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tools.machine_model import sass
from tools.machine_model.loops import Streams, main_loops
from tools.machine_model.prediction import CLASSES, Kernel
from tools.machine_model.tiling import Tiling, tiling_of_rows
from w2s_fast.errors import W2SError

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "csrc" / "cuda" / "cross_entropy.cu"
FLAGS = ("-std=c++17", "-O3")  # as setup.py compiles them
WORK = {"0": "loss", "1": "entropy", "2": "all"}  # csrc/cuda/work.h
_BYTES = {"float": 4, "BF16": 2, "F16": 2, "None": 0}
# Kernels that go through rows, with threads and bytes of shared memory where their launch does not
# depend on the row (csrc/cuda/tile.h). Others are not counted.
LAUNCH: dict[str, Tiling | None] = {
    "RowsKernel": None,
    "GradientKernel": Tiling(256, 1536),
    "FixupKernel": Tiling(128, 0),
    "ScaleKernel": Tiling(256, 0),
}


@dataclass(frozen=True)
class Name:
    """``RowsKernel<BF16, None, true>`` of a mangled symbol: family, types, flags."""

    family: str
    types: tuple[str, ...]
    flags: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.family}<{', '.join((*self.types, *self.flags))}>"

    @property
    def mode(self) -> str:
        """The name without the flag ``RESIDENT``, which follows from device and row."""
        flags = self.flags[1:] if self.family == "RowsKernel" else self.flags
        return str(Name(self.family, self.types, tuple(WORK.get(f, f) for f in flags)))

    @property
    def widths(self) -> tuple[int, int]:
        """Bytes of a logit and of a dense label."""
        return _BYTES[self.types[0]], _BYTES[(*self.types, "None")[1]]

    @property
    def resident(self) -> bool:
        """Whether a block keeps its part of the row in shared memory."""
        return self.flags[:1] == ("true",)


def names_of(symbols: list[str]) -> dict[str, Name]:
    """Demangle the symbols of row kernels; others are left out."""
    command = ["c++filt", *symbols]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {}
    for symbol, line in zip(symbols, text.splitlines(), strict=True):
        plain = line.replace("(anonymous namespace)::", "").replace("w2s::cuda::", "")
        found = re.search(r"(\w+Kernel)<([^>]*)>", plain)
        if found and found[1] in LAUNCH:
            words = [re.sub(r"^\(\w+\)", "", w) for w in found[2].split(", ")]
            types = tuple(w for w in words if w in _BYTES)
            names[symbol] = Name(found[1], types, tuple(w for w in words if w not in _BYTES))
    return names


def nvcc() -> list[str]:
    """Return the CUDA compiler as an argument list: ``NVCC``, else the one on the path.

    Raises:
        W2SError: if there is none.
    """
    words = shlex.split(os.environ.get("NVCC", "nvcc"))
    if not words or not shutil.which(words[0]):
        name = words[0] if words else ""
        raise W2SError(f"no CUDA compiler {name!r} was found; install nvcc or set NVCC to its path")
    return words


def nvcc_version() -> str:
    """Return the release of nvcc, as 13.0."""
    text = subprocess.run([*nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else "unknown"


def compile_kernels(arch: int, folder: Path) -> list[Path]:
    """Compile the row kernels for ``sm_<arch>`` with nvcc."""
    cubin = folder / f"{SOURCE.stem}.sm_{arch}.cubin"
    flags = [*FLAGS, "-cubin", f"-arch=sm_{arch}", "-I", str(ROOT / "csrc")]
    subprocess.run([*nvcc(), *flags, "-o", str(cubin), str(SOURCE)], check=True)
    return [cubin]


def extract(library: Path, arch: int, folder: Path) -> list[Path]:
    """Take the cubins of one architecture out of a library."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        sass.tool("cuobjdump", "-xelf", f"sm_{arch}", str(library.resolve()), folder=Path(work))
        return [f.rename(folder / f.name) for f in sorted(Path(work).glob("*.cubin"))]


def kernels_of(
    code: dict[str, tuple[sass.Function, sass.Usage]],
    arch: int,
    pattern: str = "",
    library: ModuleType | None = None,
) -> Iterator[Kernel]:
    """Count the row kernels whose mode matches a pattern, as launched for 128256 classes.

    Of the row kernels that keep a row in shared memory and those that do not, one is launched.

    Args:
        code: of an architecture, by ``sass.code_of``.
        library: the module that knows the tiling; by default the one that is built.
    """
    for symbol, name in names_of(list(code)).items():
        if not re.search(pattern, name.mode):
            continue
        function, usage = code[symbol]
        logits, labels = name.widths
        tiling = LAUNCH[name.family]
        tiling = tiling or tiling_of_rows(arch, logits, labels, CLASSES, library)
        if name.family == "RowsKernel" and name.resident != (tiling.tile > 0):
            continue
        streams = Streams(logits + labels, logits)
        yield Kernel(
            backend="cuda",
            name=name.mode,
            arch=arch,
            streams=streams,
            loops=tuple(main_loops(function, streams, max(1, labels // logits))),
            registers=usage.registers,
            threads=tiling.threads,
            shared=usage.shared + tiling.shared,
            tile=tiling.tile,
        )
