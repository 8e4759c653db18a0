"""The modes of the Triton kernels: which constants, dtypes and pointers each is compiled with."""

from __future__ import annotations

import itertools
import re
from typing import Any

from w2s_fast.kernels import _tile, info_nce
from w2s_fast.kernels import closed_rows as cr
from w2s_fast.kernels import cross_entropy as ce
from w2s_fast.kernels import quantile as qu
from w2s_fast.kernels import two_class as tc
from w2s_fast.kernels import two_class_grid as tg

INTS = dict.fromkeys(
    ("size", "n_rows", "n_cols", "n_topk", "ignore", "n", "blocks", "tiles"), "i32"
)
STRIDES = (
    "z_stride", "g_stride", "q_stride", "scale_stride", "hidden_stride", "head_stride",
    "grad_stride", "s_stride", "stats_stride", "up_stride",
)  # fmt: skip
FLOATS = (
    "smoothing", "focal_gamma", "max_confidence", "softcap", "z_loss", "tolerance", "aux", "alpha",
    "margin", "scale", "cut",
)  # fmt: skip
POINTERS = {
    "ids_ptr": "*i64", "rest_ptr": "*fp32", "w_ptr": "*fp32", "aux_ptr": "*fp32",
    "at_ptr": "*fp32", "scale_ptr": "*fp32", "stats_ptr": "*fp32", "index_ptr": "*i64",
    "topk_ptr": "*fp32", "by_ptr": "*fp32", "hist_ptr": "*i64", "out_ptr": "*fp32",
    "keep_ptr": "*u8", "prefix_ptr": "*i64", "from_ptr": "*fp32", "least_ptr": "*i64",
    "rows_ptr": "*i64", "count_ptr": "*i64", "pull_ptr": "*fp32", "lse_ptr": "*fp32",
    "grad_ptr": "*fp32", "bias_grad_ptr": "*fp32", "losses_ptr": "*fp32", "words_ptr": "*i64",
    "sums_ptr": "*fp64", "up_ptr": "*fp32",
}  # fmt: skip
V_ALIGNED = (
    "n_cols", "size", "z_stride", "g_stride", "q_stride", "s_stride", "hidden_stride",
    "head_stride", "grad_stride",
)  # fmt: skip

Case = dict[str, Any]
PLAIN: Case = {"RULE": 0, "SMOOTH": False, "FOCAL": False, "WINDOW": False, "CAP": False}
PLAIN |= {"ENTROPY": True}
HEAVY: Case = {"RULE": 2, "SMOOTH": True, "FOCAL": True, "WINDOW": True, "CAP": False}
HEAVY |= {"ENTROPY": True}
STEPS = {"G_STEP": True, "Q_STEP": True, "KBLOCK": 1}
# Every kernel once, in the mode that needs most, and dense labels also in the one that is usual.
ONCE = (
    "rows hard bf16", "rows dense fp32", "rows dense plain bf16", "rows sparse cap fp32",
    "gradient sparse bf16", "fixup sparse fp32", "scale bf16", "quantile round 2",
    "quantile finish", "quantile histogram", "quantile successor", "two classes 2048",
    "two classes grid dense", "two classes grid plain", "two classes gradient",
    "closed rows bf16", "closed rows fp32", "info_nce rules fp32",
    "info_nce rules bf16", "info_nce plain fp32",
)  # fmt: skip
NO_LABELS = "q_ptr rest_ptr"
NO_IDS = "ids_ptr rest_ptr topk_ptr"


def row_case(
    name: str, kernel: Any, x: str, q: str | None, off: str, aligned: bool = False, **const: Any
) -> Case:
    """One mode of a row kernel: logits ``x``, weak labels ``q``, pointers ``off`` not given.

    Unless ``aligned``, nothing is known about the vocabulary and the strides, as with V = 50257.
    """
    v, note = const.pop("v", 128_256), const.pop("note", "")
    tile = _tile.tile(v, 4 if x == "fp32" else 2, const.get("CAP", False))
    single = kernel is ce.fixup_kernel and const.get("KIND") == 0  # two entries of a row
    const = HEAVY | STEPS | const | tile
    kind = next((k for k, n in ce.KINDS.items() if n == const.get("KIND")), "")
    return {
        "name": f"{name} {x}{' aligned' if aligned else ''}{note}",
        "classes": v,
        "kernel": kernel,
        "pointers": POINTERS | {"z_ptr": f"*{x}", "g_ptr": f"*{x}", "q_ptr": q and f"*{q}"},
        "const": {k: const.get(k) for k in constants_of(kernel)} | dict.fromkeys(off.split()),
        "warps": tile["num_warps"],
        "registers": _tile.registers(4 if x == "fp32" else 2, kind, const["CAP"])
        if kernel is ce.rows_kernel
        else {},
        "aligned": aligned,
        "vec": tile["VEC"],
        # Arrays out of step with the logits move one entry at a time; so do the ids of a residual.
        "wide": const["G_STEP"] and const["Q_STEP"] and not single,
    }


def cases() -> list[Case]:
    """Every kernel in its heaviest mode for each kind of weak label and each class of V."""
    rows, gradient, fixup = ce.rows_kernel, ce.gradient_kernel, ce.fixup_kernel
    out = [
        row_case("rows hard", rows, "bf16", None, NO_LABELS, True, KIND=0, **PLAIN),
        row_case("rows hard", rows, "fp16", None, NO_LABELS, KIND=0, **PLAIN),
        row_case("rows 2", rows, "fp32", "fp32", NO_IDS, KIND=2, RULE=3, v=2),
        row_case("rows given", rows, "fp32", "fp32", NO_IDS, KIND=2, RULE=4, v=64),
        row_case("rows dense", rows, "bf16", "fp32", NO_IDS, KIND=2, note=" fp32 labels"),
        row_case("rows dense", rows, "bf16", "bf16", NO_IDS, True, KIND=2),
        row_case("rows apart", rows, "bf16", "bf16", NO_IDS, KIND=2, G_STEP=False, Q_STEP=False),
        row_case("gradient hard", gradient, "bf16", None, NO_LABELS, KIND=0),
        row_case("fixup hard", fixup, "bf16", None, NO_LABELS, KIND=0),
    ]
    for x in ("bf16", "fp32"):
        out += [
            row_case("rows hard", rows, x, None, NO_LABELS, KIND=0, **PLAIN),
            row_case("rows hard 50257", rows, x, None, NO_LABELS, KIND=0, v=50257),
            row_case("rows dense", rows, x, x, NO_IDS, KIND=2),
            row_case("rows dense plain", rows, x, x, NO_IDS, KIND=2, **PLAIN),
            row_case("rows dense 4096", rows, x, x, NO_IDS, KIND=2, v=4096),
            row_case("rows sparse", rows, x, "fp32", "", KIND=1, KBLOCK=16),
            row_case("rows sparse cap", rows, x, "fp32", "", KIND=1, KBLOCK=16, CAP=True),
            row_case("gradient dense", gradient, x, "fp32", "ids_ptr rest_ptr", KIND=2, CAP=True),
            row_case("gradient sparse", gradient, x, "fp32", "", KIND=1, KBLOCK=16),
            row_case("fixup sparse", fixup, x, "fp32", "rest_ptr", KIND=1, KBLOCK=16, CAP=True),
            row_case("scale", ce.scale_kernel, x, None, ""),
        ]
    return out + quantile_cases() + two_class_cases() + closed_rows_cases() + info_nce_cases()


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
    fixed: Case = {
        "warps": 4,
        "aligned": True,
        "wide": False,
        "vec": 1,
    }
    fixed |= {"pointers": POINTERS | {"x_ptr": "*fp32", "q_ptr": "*fp64"}}
    rounds: list[Case] = [
        {"name": f"quantile round {r}", "kernel": qu.count_kernel}
        | {"const": {"ROUND": r, "BLOCK": qu.BLOCK, "KTH": False}}
        for r in range(4)
    ]
    others: list[Case] = [
        {"name": "quantile finish", "kernel": qu.finish_kernel}
        | {"const": {"KTH": False}, "warps": 8},
        {"name": "quantile histogram", "kernel": qu.histogram_kernel}
        | {"const": {"SHIFT": 10, "BITS": 11, "BLOCK": qu.BLOCK}},
        {"name": "quantile successor", "kernel": qu.successor_kernel}
        | {"const": {"BLOCK": qu.BLOCK}},
    ]
    ranks = {"pointers": fixed["pointers"] | {"q_ptr": "*i64"}}
    kth: list[Case] = [
        {"name": "kth round 1", "kernel": qu.count_kernel}
        | {"const": {"ROUND": 1, "BLOCK": qu.BLOCK, "KTH": True}},
        {"name": "kth finish", "kernel": qu.finish_kernel} | {"const": {"KTH": True}, "warps": 8},
    ]
    return [fixed | case for case in (*rounds, *others)] + [fixed | ranks | case for case in kth]


def two_class_cases() -> list[Case]:
    """One program of every size, several, and the gradient, with every term and kind of label."""
    flags = {"OWN": True, "MEAN": True, "SMOOTH": True, "FOCAL": True, "WINDOW": True}
    fixed: Case = {"aligned": False, "wide": False, "vec": 1}
    batches = {"FROM": 1, "CHECK": False}
    plain: Case = dict.fromkeys(("SMOOTH", "FOCAL", "WINDOW", "CAP"), False)
    plain |= dict.fromkeys(("stats_ptr", "index_ptr"))
    kernels: list[tuple[str, Any, int, int, Case]] = [
        (f"{block}", tc.two_class_kernel, block, warps, batches)
        for block, warps in tc.BLOCKS.items()
    ]
    kernels += [
        ("grid", tg.two_class_grid_kernel, tg.TILE, tg.WARPS, batches),
        ("grid given", tg.two_class_grid_kernel, tg.TILE, tg.WARPS, batches | {"FROM": 0}),
        ("grid checks", tg.two_class_grid_kernel, tg.TILE, tg.WARPS, batches | {"CHECK": True}),
        ("grid plain", tg.two_class_grid_kernel, tg.TILE, tg.WARPS, batches | plain),
        ("gradient", tc.two_class_gradient_kernel, tc.ROWS, tc.WARPS, {}),
    ]
    kinds = ((0, None, "q_ptr"), (2, "*bf16", "ids_ptr"))
    return [
        fixed
        | {"name": f"two classes {name}{' dense' if kind else ''}", "warps": warps}
        | {"kernel": kernel, "debug": const.get("CHECK", False)}
        | {"registers": tg.registers("plain" in name) if "grid" in name else {}}
        | {"pointers": POINTERS | {"z_ptr": "*bf16", "g_ptr": "*bf16", "q_ptr": q}}
        | {"const": flags | {"CAP": kind == 2} | const | {"KIND": kind, "BLOCK": block, off: None}}
        for name, kernel, block, warps, const in kernels
        for kind, q, off in kinds
    ]


def closed_rows_cases() -> list[Case]:
    """The products of a fused head for rows whose gate closes late, in every dtype."""
    blocks = {"BLOCK_N": 32, "BLOCK_V": 64, "BLOCK_D": 32}
    fixed: Case = {"kernel": cr.head_gradient_kernel, "warps": 8, "aligned": True}
    fixed |= {"wide": False, "vec": 1, "products": True}
    return [
        fixed
        | {"name": f"closed rows {x}", "const": {"CAP": True, "WIDEN": False, **blocks}}
        | {"pointers": POINTERS | dict.fromkeys(("hidden_ptr", "head_ptr", "bias_ptr"), f"*{x}")}
        for x in ("bf16", "fp16", "fp32")
    ]


def info_nce_cases() -> list[Case]:
    """All rules, then none; the gradient over the similarities, or in 16 bits beside them."""
    fixed: Case = {"kernel": info_nce.info_nce_kernel, "wide": False}
    pointers = POINTERS | {
        "s_ptr": "*fp32", "positives_ptr": "*i64", "own_ptr": "*i64", "groups_ptr": "*i64",
        "mask_ptr": "*u8",
    }  # fmt: skip
    out: list[Case] = []
    for x, m, aligned in (("fp32", 8192, False), ("bf16", 8192, False), ("fp32", 2048, True)):
        tile = _tile.tile(m, 4)
        const = {k: v for k, v in tile.items() if k != "num_warps"}
        case = fixed | {"warps": tile["num_warps"], "aligned": aligned, "vec": tile["VEC"]}
        case["pointers"] = pointers | {"g_ptr": f"*{x}"}
        rules = const | {"WITHIN": False, "MARGIN": True, "FOCAL_WEIGHT": True, "G_STEP": True}
        none = dict.fromkeys(("own_ptr", "groups_ptr", "mask_ptr", "w_ptr"))
        plain = rules | none | {"MARGIN": False, "FOCAL_WEIGHT": False}
        note = " aligned" if aligned else ""
        out += [
            case | {"name": f"info_nce rules {x}{note}", "const": rules},
            case | {"name": f"info_nce plain {x}{note}", "wide": x == "fp32", "const": plain},
        ]
    return out


def constants_of(kernel: Any) -> list[str]:
    """Names of a kernel's compile-time parameters."""
    return [p.name for p in kernel.params if p.is_constexpr]


def row_modes(pattern: str = "") -> list[Case]:
    """Return the modes of row kernels whose name matches a regular expression."""
    return [c for c in cases() if is_row_mode(c) and re.search(pattern, c["name"])]


def is_row_mode(case: Case) -> bool:
    """Whether a mode is one of a kernel that goes through rows of any length, see ``row_case``."""
    return "classes" in case
