"""Compile every Triton kernel for GPUs that are not there, and read what the machine code does.

Run by ``kernels/test_compile_triton.py`` in processes of their own, because the interpreter and
the compiler cannot share one: ``PYTHONPATH=tests python tests/helpers/triton_audit.py 80 90 100``
prints one JSON object a kernel and architecture: the modes with limits, and every other kernel on
one architecture, in the mode that needs most. ``--all`` compiles all modes (minutes), ``--full``
every combination of branches, dtypes and tiles (an hour).
"""

from __future__ import annotations

import json
import linecache
import re
import sys
from typing import Any

from helpers import machine_limits
from helpers.races import layouts
from helpers.races.audit import races
from helpers.races.ptx import kernels_of
from tools.machine_model.prediction import to_dict
from tools.machine_model.triton import Code, code_of, compile_case, kernel_of
from tools.machine_model.triton_modes import ONCE, Case, cases, full_cases, is_row_mode

TIGHTEST = 100  # its compiler gives loops the fewest registers


def audit(case: Case, arch: int) -> dict[str, Any]:
    """Compile one mode for ``sm_<arch>`` and tell what its machine code does."""
    done = compile_case(case, arch)
    report = {k: case[k] for k in ("name", "wide")} | {"arch": arch}
    code = code_of(done)
    report |= {"shared": done.metadata.shared} | inspect_code(code)
    report["kernel"] = to_dict(kernel_of(case, arch, done, code)) if is_row_mode(case) else None
    # Matrix instructions are not followed; their operands in shared memory are the compiler's.
    report |= {"races": [], "unseen": []}
    if not case.get("products"):
        (entry,) = kernels_of(done.asm["ptx"])
        report["races"], report["unseen"] = races(entry, layouts.of_triton(case))
    return report


def loops_of(code: str) -> list[list[str]]:
    """The instructions of every innermost loop: from a label to a branch back to it.

    Loads of the list of classes, of which a residual compares every entry with each, are left out.
    """
    lines: list[str] = []
    labels: dict[str, int] = {}
    spans = []
    place, fresh = "", True
    for line in code.splitlines():
        if found := re.search(r'//## File "(.*?)", line (\d+)', line):
            if fresh:  # the first of several lines is the innermost of inlined functions
                file, n = found[1], int(found[2])
                # Triton may count from the decorator of a function: one line late.
                place = linecache.getline(file, n - 1) + linecache.getline(file, n)
            fresh = False
            continue
        fresh = True
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(lines)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append("" if "LDG" in found[1] and "ids_ptr" in place else found[1])
            back = re.search(r"\bBRA\b.*`\((\.L\w+)\)", found[1])
            # A label right before its branch is the endless loop that pads the end of the code.
            if back and len(lines) - labels.get(back[1], len(lines)) > 2:
                spans.append((labels[back[1]], len(lines)))
    inner = [s for s in spans if not any(s[0] <= r[0] and r[1] <= s[1] and r != s for r in spans)]
    return [lines[a:b] for a, b in inner]


def inspect_code(machine_code: Code) -> dict[str, Any]:
    """Registers, stack bytes, spill instructions, and the accesses of the loops over a row.

    ``looped`` counts spills in them, ``narrow`` loads and stores of less than 16 bytes.
    """
    code, usage = machine_code

    def count(pattern: str, text: str) -> int:
        return len(re.findall(pattern, text))

    out: dict[str, Any] = dict.fromkeys(("looped", "narrow"), 0)
    for lines in loops_of(code):
        text = "\n".join(lines)
        ldg, ldg128 = count(r"\bLDG\b", text), count(r"\bLDG\.[A-Z0-9.]*128\b", text)
        stg, stg128 = count(r"\bSTG\b", text), count(r"\bSTG\.[A-Z0-9.]*128\b", text)
        out["looped"] += count(r"\b(?:LDL|STL)\b", text)
        out["narrow"] += ldg - ldg128 + stg - stg128
    return out | {
        "regs": usage.registers, "stack": usage.stack, "spills": count(r"\b(?:LDL|STL)\b", code),
        "ldg": count(r"\bLDG\b", code), "ldg128": count(r"\bLDG\.[A-Z0-9.]*128\b", code),
        "stg": count(r"\bSTG\b", code), "stg128": count(r"\bSTG\.[A-Z0-9.]*128\b", code),
    }  # fmt: skip


def chosen(arch: int, every: bool) -> list[Case]:
    """All modes; or those with limits, and on one architecture each other kernel once."""
    limited = machine_limits.LIMITS["triton"]
    return [
        case
        for case in cases()
        if every or case["name"] in limited or (arch == TIGHTEST and case["name"] in ONCE)
    ]


if __name__ == "__main__":
    for arch in (int(a) for a in sys.argv[1:] if a.isdigit()):
        for case in full_cases() if "--full" in sys.argv else chosen(arch, "--all" in sys.argv):
            print(json.dumps(audit(case, arch)), flush=True)
