"""Compile every Triton kernel for GPUs that are not there, and read what the machine code does.

Run by ``kernels/test_compile_triton.py`` in processes of their own, because the interpreter and
the compiler cannot share one: ``PYTHONPATH=tests python tests/helpers/triton_audit.py 80 90 100``
prints one JSON object a kernel and architecture, in the mode that needs most. ``--all`` compiles
all modes (minutes), ``--full`` every combination of branches, dtypes and tiles (an hour).
"""

from __future__ import annotations

import itertools
import json
import linecache
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from helpers.races import layouts
from helpers.races.audit import races
from helpers.races.ptx import kernels_of
from w2s_fast.kernels import _tile, info_nce
from w2s_fast.kernels import cross_entropy as ce
from w2s_fast.kernels import quantile as qu

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INTS = {"n_rows": "i32", "n_cols": "i32", "n_topk": "i32", "ignore": "i32", "n": "i32"}
STRIDES = ("z_stride", "g_stride", "q_stride", "scale_stride", "s_stride", "stats_stride")
FLOATS = (
    "smoothing", "focal_gamma", "max_confidence", "softcap", "z_loss", "tolerance", "margin",
    "scale",
)  # fmt: skip
POINTERS = {
    "ids_ptr": "*i64", "rest_ptr": "*fp32", "w_ptr": "*fp32", "aux_ptr": "*fp32",
    "at_ptr": "*fp32", "scale_ptr": "*fp32", "stats_ptr": "*fp32", "index_ptr": "*i64",
    "topk_ptr": "*fp32", "by_ptr": "*fp32", "hist_ptr": "*i64", "out_ptr": "*fp32",
    "keep_ptr": "*u8", "prefix_ptr": "*i64", "from_ptr": "*fp32", "least_ptr": "*i64",
}  # fmt: skip
V_ALIGNED = ("n_cols", "z_stride", "g_stride", "q_stride", "s_stride")
# Registers, threads, blocks and bytes of shared memory of one Hopper SM.
SM90 = (65536, 2048, 32, 233_472)

Case = dict[str, Any]
PLAIN = {"RULE": 0, "SMOOTH": False, "FOCAL": False, "WINDOW": False, "CAP": False}
HEAVY = {"RULE": 2, "SMOOTH": True, "FOCAL": True, "WINDOW": True, "CAP": False}
STEPS = {"G_STEP": True, "Q_STEP": True, "KBLOCK": 1}
# Every kernel once, in the mode that needs most.
EVERYWHERE = (
    "rows hard bf16", "rows dense fp32", "rows sparse cap fp32", "gradient sparse bf16",
    "fixup sparse fp32", "scale bf16", "quantile round 2", "quantile finish",
    "quantile histogram", "quantile successor", "info_nce rules fp32", "info_nce rules bf16",
    "info_nce plain fp32",
)  # fmt: skip
NO_LABELS = "q_ptr rest_ptr"
NO_IDS = "ids_ptr rest_ptr topk_ptr"


def row_case(
    name: str, kernel: Any, x: str, q: str | None, off: str, aligned: bool = False, **const: Any
) -> Case:
    """One mode of a row kernel: logits ``x``, weak labels ``q``, pointers ``off`` not given.

    Unless ``aligned``, nothing is known about the vocabulary and the strides, as with V = 50257.
    ``plain`` marks the path that must not spend more than two exponentials an entry.
    """
    v, note = const.pop("v", 128_256), const.pop("note", "")
    tile = _tile.tile(v, 4 if x == "fp32" else 2, const.get("CAP", False))
    plain = const.pop("plain", False)
    single = kernel is ce.fixup_kernel and const.get("KIND") == 0  # two entries of a row
    const = HEAVY | STEPS | const | tile
    return {
        "name": f"{name} {x}{' aligned' if aligned else ''}{note}",
        "kernel": kernel,
        "pointers": POINTERS | {"z_ptr": f"*{x}", "g_ptr": f"*{x}", "q_ptr": q and f"*{q}"},
        "const": {k: const.get(k) for k in constants_of(kernel)} | dict.fromkeys(off.split()),
        "warps": tile["num_warps"],
        "aligned": aligned,
        "vec": tile["VEC"],
        "plain": plain,
        # A pass over a long row must keep the memory busy by itself.
        "busy": kernel is ce.rows_kernel and v > 16384 and not const["CAP"],
        # Arrays out of step with the logits move one entry at a time; so do the ids of a residual.
        "wide": const["G_STEP"] and const["Q_STEP"] and not single,
    }


def cases() -> list[Case]:
    """Every kernel in its heaviest mode for each kind of weak label and each class of V."""
    rows, gradient, fixup = ce.rows_kernel, ce.gradient_kernel, ce.fixup_kernel
    out = [
        row_case("rows hard", rows, "bf16", None, NO_LABELS, True, KIND=0, **PLAIN, plain=True),
        row_case("rows hard", rows, "fp16", None, NO_LABELS, KIND=0, **PLAIN, plain=True),
        row_case("rows 2", rows, "fp32", "fp32", NO_IDS, KIND=2, RULE=3, v=2),
        row_case("rows given", rows, "fp32", "fp32", NO_IDS, KIND=2, RULE=4, v=64),
        row_case("rows dense", rows, "bf16", "fp32", NO_IDS, KIND=2),
        row_case("rows dense", rows, "bf16", "bf16", NO_IDS, True, KIND=2),
        row_case("rows apart", rows, "bf16", "bf16", NO_IDS, KIND=2, G_STEP=False, Q_STEP=False),
        row_case("gradient hard", gradient, "bf16", None, NO_LABELS, KIND=0),
        row_case("fixup hard", fixup, "bf16", None, NO_LABELS, KIND=0),
    ]
    for x in ("bf16", "fp32"):
        out += [
            row_case("rows hard", rows, x, None, NO_LABELS, KIND=0, **PLAIN, plain=True),
            row_case("rows hard 50257", rows, x, None, NO_LABELS, KIND=0, v=50257),
            row_case("rows dense", rows, x, x, NO_IDS, KIND=2),
            row_case("rows dense 4096", rows, x, x, NO_IDS, KIND=2, v=4096),
            row_case("rows sparse", rows, x, "fp32", "", KIND=1, KBLOCK=16),
            row_case("rows sparse cap", rows, x, "fp32", "", KIND=1, KBLOCK=16, CAP=True),
            row_case("gradient dense", gradient, x, "fp32", "ids_ptr rest_ptr", KIND=2, CAP=True),
            row_case("gradient sparse", gradient, x, "fp32", "", KIND=1, KBLOCK=16),
            row_case("fixup sparse", fixup, x, "fp32", "rest_ptr", KIND=1, KBLOCK=16, CAP=True),
            row_case("scale", ce.scale_kernel, x, None, ""),
        ]
    return out + quantile_cases() + info_nce_cases()


def full_cases() -> list[Case]:
    """The product of branches, dtypes, kinds of labels and tiles."""
    out = []
    sizes = [v for v, _, _ in _tile.TILES[:-1]] + [128_256]
    flags = ("SMOOTH", "FOCAL", "WINDOW", "CAP")
    for x, v, kind in itertools.product(("bf16", "fp16", "fp32"), sizes, (0, 1, 2)):
        q = (None, "fp32", x)[kind]
        offs = ((NO_LABELS,), ("", "rest_ptr"), (NO_IDS,))[kind]
        for off, rule, on in itertools.product(
            offs, (0, 1, 2, 3, 4), itertools.product((0, 1), repeat=4)
        ):
            const = {"KIND": kind, "RULE": rule, "v": v, "KBLOCK": 16 if kind == 1 else 1}
            const |= {k: bool(b) for k, b in zip(flags, on, strict=True)}
            note = f" V{v} K{kind} R{rule} {on} {off}"
            out.append(row_case("rows", ce.rows_kernel, x, q, off, note=note, **const))
            if rule == 0 and on[1:3] == (0, 0):
                out.append(row_case("gradient", ce.gradient_kernel, x, q, off, note=note, **const))
    return out


def quantile_cases() -> list[Case]:
    """The four counting rounds and the interpolation."""
    fixed = {"warps": 4, "aligned": True, "wide": False, "plain": False, "busy": False, "vec": 1}
    fixed |= {"pointers": POINTERS | {"x_ptr": "*fp32", "q_ptr": "*fp64"}}
    rounds = [
        {"name": f"quantile round {r}", "kernel": qu.count_kernel}
        | {"const": {"ROUND": r, "BLOCK": qu.BLOCK, "KTH": False}}
        for r in range(4)
    ]
    others = [
        {"name": "quantile finish", "kernel": qu.finish_kernel}
        | {"const": {"KTH": False}, "warps": 8},
        {"name": "quantile histogram", "kernel": qu.histogram_kernel}
        | {"const": {"SHIFT": 10, "BITS": 11, "BLOCK": qu.BLOCK}},
        {"name": "quantile successor", "kernel": qu.successor_kernel}
        | {"const": {"BLOCK": qu.BLOCK}},
    ]
    ranks = {"pointers": fixed["pointers"] | {"q_ptr": "*i64"}}
    kth = [
        {"name": "kth round 1", "kernel": qu.count_kernel}
        | {"const": {"ROUND": 1, "BLOCK": qu.BLOCK, "KTH": True}},
        {"name": "kth finish", "kernel": qu.finish_kernel, "const": {"KTH": True}, "warps": 8},
    ]
    return [fixed | case for case in (*rounds, *others)] + [fixed | ranks | case for case in kth]


def info_nce_cases() -> list[Case]:
    """All rules, then none; the gradient over the similarities, or in 16 bits beside them."""
    fixed = {"kernel": info_nce.info_nce_kernel, "plain": False, "busy": False, "wide": False}
    pointers = POINTERS | {
        "s_ptr": "*fp32", "positives_ptr": "*i64", "own_ptr": "*i64", "groups_ptr": "*i64",
        "mask_ptr": "*u8",
    }  # fmt: skip
    out = []
    for x, m, aligned in (("fp32", 8192, False), ("bf16", 8192, False), ("fp32", 2048, True)):
        tile = _tile.tile(m, 4)
        const = {k: v for k, v in tile.items() if k != "num_warps"}
        case = fixed | {"warps": tile["num_warps"], "aligned": aligned, "vec": tile["VEC"]}
        case["pointers"] = pointers | {"g_ptr": f"*{x}"}
        rules = const | {"WITHIN": False, "MARGIN": True, "FOCAL_WEIGHT": True, "G_STEP": True}
        none = dict.fromkeys(("own_ptr", "groups_ptr", "mask_ptr", "w_ptr"))
        note = " aligned" if aligned else ""
        out += [
            case | {"name": f"info_nce rules {x}{note}", "const": rules},
            case | {"name": f"info_nce plain {x}{note}", "plain": True, "wide": x == "fp32",
                    "const": rules | none | {"MARGIN": False, "FOCAL_WEIGHT": False}},
        ]  # fmt: skip
    return out


def constants_of(kernel: Any) -> list[str]:
    """Names of a kernel's compile-time parameters."""
    return [p.name for p in kernel.params if p.is_constexpr]


def compile_case(case: Case, arch: int) -> dict[str, Any]:
    """Compile one case for ``sm_<arch>`` and count what its machine code does."""
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
    options = {"num_warps": case["warps"], "enable_fp_fusion": True}
    done = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    report = {k: case[k] for k in ("name", "wide", "plain", "busy")} | {"arch": arch}
    report |= {"shared": done.metadata.shared} | inspect_cubin(done.asm["cubin"], case["vec"])
    (entry,) = kernels_of(done.asm["ptx"])
    report["races"], report["unseen"] = races(entry, layouts.of_triton(case))
    return report | {"in_flight": in_flight(report, 32 * case["warps"])}


def in_flight(report: dict[str, Any], threads: int) -> int:
    """Bytes that the loads of the pass of one iteration can have on the way, on a Hopper SM."""
    registers, most, blocks, shared = SM90
    by_registers = registers // (threads * -(-report["regs"] // 8) * 8)
    by_shared = shared // (report["shared"] + 1024)
    return report["pass128"] * 16 * threads * min(by_registers, most // threads, blocks, by_shared)


def run_tool(*args: Any) -> str:
    """What a tool of Triton's own CUDA binaries prints."""
    env = dict(os.environ, PATH=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(
        [TOOLS / args[0], *args[1:]], capture_output=True, text=True, env=env, check=True
    )
    return done.stdout


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


def inspect_cubin(cubin: bytes, vec: int) -> dict[str, Any]:
    """Registers, stack bytes, spill instructions, and what the loops over a row do.

    ``looped`` counts spills in them, ``narrow`` loads and stores of less than 16 bytes,
    ``exponentials`` is a sum over the loops a row goes through of MUFU instructions an entry,
    ``issue`` the same of all instructions.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        usage = run_tool("cuobjdump", "--dump-resource-usage", f.name)
        code = run_tool("nvdisasm", "-c", "-gi", f.name)

    def used(name: str) -> int:
        found = re.search(name + r":(\d+)", usage)
        return int(found[1]) if found else -1

    def count(pattern: str, text: str) -> int:
        return len(re.findall(pattern, text))

    names = ("looped", "narrow", "pass128", "exponentials", "issue")
    out: dict[str, Any] = dict.fromkeys(names, 0)
    for lines in loops_of(code):
        text = "\n".join(lines)
        ldg, ldg128 = count(r"\bLDG\b", text), count(r"\bLDG\.[A-Z0-9.]*128\b", text)
        stg, stg128 = count(r"\bSTG\b", text), count(r"\bSTG\.[A-Z0-9.]*128\b", text)
        out["looped"] += count(r"\b(?:LDL|STL)\b", text)
        out["narrow"] += ldg - ldg128 + stg - stg128
        if ldg128:
            out["pass128"] = out["pass128"] or ldg128
            out["exponentials"] += count(r"\bMUFU\b", text) / (ldg128 * vec)
            out["issue"] += len(lines) / (ldg128 * vec)
    return out | {
        "regs": used("REG"), "stack": used("STACK"), "spills": count(r"\b(?:LDL|STL)\b", code),
        "ldg": count(r"\bLDG\b", code), "ldg128": count(r"\bLDG\.[A-Z0-9.]*128\b", code),
        "stg": count(r"\bSTG\b", code), "stg128": count(r"\bSTG\.[A-Z0-9.]*128\b", code),
    }  # fmt: skip


if __name__ == "__main__":
    full = "--full" in sys.argv
    for arch in (int(a) for a in sys.argv[1:] if a.isdigit()):
        for case in full_cases() if full else cases():
            if full or "--all" in sys.argv or case["name"] in EVERYWHERE:
                print(json.dumps(compile_case(case, arch)), flush=True)
