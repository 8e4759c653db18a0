"""Read registers, spills, and widths of loads and stores from the machine code of a library.

Needs the disassembler of the Triton wheel. ``python tests/helpers/cuda_audit.py LIBRARY 80 90``
prints one JSON object a kernel and architecture, ``... LIBRARY races`` one a kernel with its races.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.races import layouts
from helpers.races.audit import races
from helpers.races.ptx import kernels_of
from tools.machine_model.sass import tool

FORMS = {"f": "fp32", "4BF16": "bf16", "3F16": "fp16", "4None": "topk"}
WORK = ("loss", "entropy", "all")  # work.h
KINDS = ("RowsKernel", "GradientKernel", "FixupKernel", "ScaleKernel", "quantile_kernel")
KINDS += ("two_class_kernel", "two_class_gradient_kernel", "contrastive_kernel")


def name_of(mangled: str) -> str:
    """``RowsKernel bf16 topk resident loss`` from a symbol."""
    plain = re.sub(r"\d*_GLOBAL__N__[0-9a-f]+_\d+_\w+?_cu_[0-9a-f]{8}(_\d+)?", "", mangled)
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


def usage(library: Path) -> dict[tuple[str, int], dict[str, int]]:
    """(symbol, architecture) -> registers, stack and static shared memory in bytes."""
    found, arch = {}, 0
    symbol = ""
    for line in tool("cuobjdump", "--dump-resource-usage", str(library)).splitlines():
        if m := re.search(r"arch = sm_(\d+)", line):
            arch = int(m[1])
        elif m := re.search(r"Function (\S+?):", line):
            symbol = m[1]
        if m := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            found[symbol, arch] = {"regs": int(m[1]), "stack": int(m[2]), "static": int(m[3])}
    return found


def audit(library: Path, arch: int) -> Iterator[dict[str, Any]]:
    """One row a kernel, for one architecture."""
    sizes = usage(library)
    for part in re.split(
        r"(?=Function : )", tool("cuobjdump", "-arch", f"sm_{arch}", "-sass", str(library))
    ):
        if not (m := re.match(r"Function : (\S+)", part)):
            continue
        body = part

        def count(pattern: str, body: str = body) -> int:
            return len(re.findall(pattern, body))

        yield {"name": name_of(m[1]), "arch": arch, **sizes[m[1], arch]} | {
            "instructions": count(r"/\*[0-9a-f]{4,6}\*/ "),
            "spills": count(r"\b(?:LDL|STL)\b"),
            "ldg": count(r"\bLDG\b"), "ldg128": count(r"\bLDG\.[A-Z0-9.]*128\b"),
            "copy": count(r"\bLDGSTS\b"), "copy128": count(r"\bLDGSTS\.[A-Z0-9.]*128\b"),
            "stg": count(r"\bSTG\b"), "stg128": count(r"\bSTG\.[A-Z0-9.]*128\b"),
            "lds128": count(r"\bLDS\.[A-Z0-9.]*128\b"),
            "cluster": count(r"\bUCGABAR_WAIT\b"),
        }  # fmt: skip


def races_of(library: Path) -> Iterator[dict[str, Any]]:
    """One row a kernel of the PTX for Hopper, which has clusters.

    What differs between fp16 and bf16 are conversions: bf16 stands for both.
    """
    parts = tool("cuobjdump", "-ptx", str(library)).split("Fatbin ptx code:")
    ptx = "".join(part for part in parts if ".target sm_90" in part)
    for kernel in kernels_of(ptx, lambda name: "F16" not in name.replace("BF16", "")):
        name = name_of(kernel.name)
        found, unseen = races(kernel, layouts.of_cuda(name))
        yield {"name": name, "races": found, "unseen": unseen, "accesses": len(kernel.accesses())}


if __name__ == "__main__":
    if sys.argv[2:] == ["races"]:
        for row in races_of(Path(sys.argv[1])):
            print(json.dumps(row), flush=True)
        sys.exit()
    for arch in map(int, sys.argv[2:]):
        for row in audit(Path(sys.argv[1]), arch):
            print(json.dumps(row), flush=True)
