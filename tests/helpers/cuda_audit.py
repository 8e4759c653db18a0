"""Read registers, spills, and widths of loads and stores from the machine code of CUDA kernels.

Needs the disassembler of the Triton wheel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.races import layouts
from helpers.races.audit import races
from helpers.races.ptx import kernels_of
from tools.machine_model.sass import Function, Usage, tool

FORMS = {"f": "fp32", "4BF16": "bf16", "3F16": "fp16", "4None": "topk"}
WORK = ("loss", "entropy", "all")  # work.h
KINDS = ("RowsKernel", "GradientKernel", "FixupKernel", "ScaleKernel", "quantile_kernel")
KINDS += ("two_class_kernel", "two_class_gradient_kernel", "contrastive_kernel")


def name_of(mangled: str) -> str:
    """``RowsKernel bf16 topk resident loss`` from a symbol."""
    plain = mangled
    while found := re.search(r"(\d+)(?=_GLOBAL__N__)", plain):  # a length, and so many letters
        plain = plain[: found.start()] + plain[found.end() + int(found[1]) :]
    plain = re.sub(r"NS\d?_(?=[34])", "", plain)
    kind = next(k for k in KINDS if k in plain)
    words = [kind]
    arguments = plain.split(kind, 1)[1].split("EEv")[0]
    for part in re.findall(r"4BF16|4None|3F16|S\d?_|f|Lb\d|Li\d", arguments):
        if part.startswith("Lb"):
            words.append("resident" if part == "Lb1" else "two passes")
        elif part.startswith("Li"):
            words.append(WORK[int(part[2:])])
        else:
            words.append(FORMS.get(part, words[-1]))  # a repeated type is abbreviated
    return " ".join(words)


def audit(code: dict[str, tuple[Function, Usage]], arch: int) -> Iterator[dict[str, Any]]:
    """One row a kernel of ``sass.code_of``."""
    for symbol, (function, usage) in code.items():
        opcodes = [i.opcode.split(".") for i in function.code]

        def count(*bases: str, opcodes: list[list[str]] = opcodes) -> int:
            return sum(parts[0] in bases for parts in opcodes)

        def wide(base: str, opcodes: list[list[str]] = opcodes) -> int:
            return sum(parts[0] == base and "128" in parts for parts in opcodes)

        yield {
            "name": name_of(symbol), "arch": arch, "regs": usage.registers, "stack": usage.stack,
            "static": usage.shared, "instructions": len(opcodes), "spills": count("LDL", "STL"),
            "ldg": count("LDG"), "ldg128": wide("LDG"),
            "copy": count("LDGSTS"), "copy128": wide("LDGSTS"),
            "stg": count("STG"), "stg128": wide("STG"),
            "lds128": wide("LDS"), "cluster": count("UCGABAR_WAIT"),
        }  # fmt: skip


def races_of(library: Path, every: bool) -> Iterator[dict[str, Any]]:
    """One row a kernel of the PTX for Hopper, which has clusters.

    What differs between fp16 and bf16 are conversions: bf16 stands for both. What differs between
    amounts of work is arithmetic, and so are labels of two classes: without ``every`` one of each
    stands for the others.
    """
    parts = tool("cuobjdump", "-ptx", str(library)).split("Fatbin ptx code:")
    ptx = "".join(part for part in parts if ".target sm_90" in part)
    seen: set[str] = set()

    def wanted(symbol: str) -> bool:
        if "F16" in symbol.replace("BF16", ""):
            return False
        words = [word for word in name_of(symbol).split() if word not in WORK]
        kind = " ".join(words[:2] if words[0].startswith("two_class") else words)
        fresh = kind not in seen
        seen.add(kind)
        return fresh or every

    for kernel in kernels_of(ptx, wanted):
        name = name_of(kernel.name)
        found, unseen = races(kernel, layouts.of_cuda(name))
        yield {"name": name, "races": found, "unseen": unseen, "accesses": len(kernel.accesses())}
