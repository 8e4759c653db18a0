"""The Triton kernels: compiled without a GPU, and counted."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tools.machine_model import sass
from tools.machine_model.loops import Streams, main_loops
from tools.machine_model.prediction import Kernel
from tools.machine_model.triton_modes import FLOATS, INTS, STRIDES, V_ALIGNED, Case

_BYTES = {"*fp32": 4, "*bf16": 2, "*fp16": 2}


def compile_case(case: Case, arch: int) -> Any:
    """Compile one mode for ``sm_<arch>``; the result has ``asm`` and ``metadata``."""
    kernel, const = case["kernel"], case["const"]
    names = kernel.arg_names
    types = {**INTS, **dict.fromkeys(STRIDES, "i64"), **dict.fromkeys(FLOATS, "fp32")}
    types |= case["pointers"]
    signature = {n: "constexpr" if n in const else types[n] for n in names}
    even = [n for n in names if n not in const and types[n].startswith("*")]
    if case["aligned"]:
        even += [n for n in names if n in V_ALIGNED]
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={(names.index(n),): v for n, v in const.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in even},
    )
    options = {"num_warps": case["warps"], "enable_fp_fusion": True, **case.get("registers", {})}
    if "debug" in case:  # as those kernels are launched
        options |= {"debug": case["debug"], "sanitize_overflow": False}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


class Code(NamedTuple):
    """Machine code of a compiled mode, as text, and what it occupies."""

    text: str
    usage: sass.Usage


def code_of(compiled: Any) -> Code:
    """Disassemble a compiled mode; starting the disassembler takes half a second."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        (usage,) = sass.usages_of(cubin).values()
        return Code(sass.disassemble(cubin), usage)


def kernel_of(case: Case, arch: int, compiled: Any, code: Code) -> Kernel:
    """Count a compiled mode of a row kernel."""
    (function,) = sass.parse(code.text)
    streams = streams_of(case)
    return Kernel(
        backend="triton",
        name=case["name"],
        arch=arch,
        streams=streams,
        loops=tuple(main_loops(function, streams)),
        registers=code.usage.registers,
        threads=32 * case["warps"],
        shared=compiled.metadata.shared,
        classes=case["classes"],
    )


def streams_of(case: Case) -> Streams:
    """Return the bytes of an element of a row in a mode."""
    pointers, dense = case["pointers"], case["const"].get("KIND") == 2
    logits = _BYTES[pointers["z_ptr"]]
    labels = _BYTES[pointers["q_ptr"]] if dense else 0
    return Streams(logits + labels, logits)
