"""Parameters under which kernels are looked at for races: sizes, strides, whose memory is whose.

The gradient takes the place of the logits where a kernel allows that. Rows start off the 16-byte
grid; a pointer that may be null is both at once. The block is that of row 1.
"""

from __future__ import annotations

from typing import Any

from helpers.races.audit import Params, pointer

Layout = tuple[Params, dict[str, int]]
POINTERS = ("ids", "rest", "weight", "aux", "threshold", "scale", "row_scale", "topk_diffs")


def of_triton(case: dict[str, Any]) -> list[Layout]:
    """Of a case of ``triton_audit``: two tiles and most of a third, then rows of two classes."""
    const = case["const"]
    tile = const.get("REP", 1) * const.get("LANES", 1) * const.get("VEC", 1)
    n_cols = 29 * tile // 10 // 16 * 16 + (0 if case["aligned"] else 3)
    return [triton_layout(case, n_cols, 1), triton_layout(case, 2, 0)]


def triton_layout(case: dict[str, Any], n_cols: int, part: int) -> Layout:
    const = case["const"]
    names = [n for n in case["kernel"].arg_names if n not in const]
    pointers, read = case["pointers"], "s_ptr" if "s_ptr" in names else "z_ptr"
    # Out of step, or of another width, the gradient cannot be where the logits are.
    apart = not const.get("G_STEP", True) or pointers.get("g_ptr") != pointers.get(read)
    sizes = {"n_rows": 5, "n_cols": n_cols, "n_topk": max(1, const.get("KBLOCK", 1) - 1)}
    sizes |= {"ignore": -100, "n": 3 * const.get("BLOCK", 1) - 5, "scale_stride": 1}
    sizes |= {"s_stride": n_cols, "stats_stride": 5}
    sizes |= {"blocks": 3, "tiles": 2, "up_stride": 1}
    if case["kernel"].fn.__name__ == "two_class_kernel":  # one block holds all rows
        sizes["n"] = const["BLOCK"] - 5
    sizes |= {"z_stride": n_cols, "g_stride": n_cols + apart, "q_stride": n_cols + 3 * apart}
    buffers: dict[str, int] = {}
    for name in names:
        if name.endswith("_ptr"):
            one = read if name == "g_ptr" and not apart else name
            sizes[name] = pointer(buffers.setdefault(one, len(buffers)))
    params: Params = {(i, 0): sizes[n] for i, n in enumerate(names) if n in sizes}
    return params, {"%ctaid.x": 1, "%ctaid.y": part}


def of_cuda(name: str) -> list[Layout]:
    """Of a kernel as ``cuda_audit`` calls it."""
    kind, dtype = name.split()[:2]
    each = 4 if dtype == "fp32" else 8  # classes of a chunk
    if kind == "quantile_kernel":
        n = 256 * each * 4 * 3 // 2
        return [quantile_layout(n, keep, 1) for keep in (0, pointer(1))] + [
            quantile_layout(n, 0, 4)
        ]
    if kind == "two_class_kernel":
        dense = "topk" not in name
        return [
            two_class_layout(select, dense, blocks) for select, blocks in ((0, 4), (1, 4), (1, 1))
        ]
    if kind == "two_class_gradient_kernel":
        return [two_class_layout(0, "topk" not in name, 4)]
    if kind == "contrastive_kernel":  # 16 bits have memory of their own
        long = 256 * 3 // 2 * each + 1
        return [contrastive_layout(m, each == 8) for m in (long, 2)]
    dense = kind in ("RowsKernel", "GradientKernel") and "topk" not in name
    threads = 512 if kind == "RowsKernel" else 256
    # A thread that keeps no row in shared memory loads four chunks ahead.
    ahead = kind == "GradientKernel" or "two passes" in name
    long = threads * (9 if ahead else 3) // 2 * each + 1
    layouts = [cuda_layout(long, each, dense), cuda_layout(2, each, dense)]
    if kind in ("RowsKernel", "GradientKernel"):
        layouts += [  # targets start elsewhere within 16 bytes
            cuda_layout(40 * each + 1, each, dense, threads=32, k=70, q=1),
            cuda_layout(long, each, dense, apart=1, cluster=2, q=2),
        ]
    return layouts


def cuda_layout(
    v: int, each: int, dense: bool, threads: int = 0, k: int = 3, apart: int = 0,
    cluster: int = 1, q: int = 0,
) -> Layout:  # fmt: skip
    """``RowCall`` of w2s.h and ``Tiling`` of w2s_cuda.h; ``apart``: the gradient has own memory."""
    maybe = {name: (0, pointer(4 + i)) for i, name in enumerate(POINTERS)}
    call: Any = {0: 5, 8: v, 16: k, 24: pointer(0), 32: v}
    call |= {48: maybe["ids"] if dense else pointer(4), 56: (0, pointer(2)), 64: v + q}
    call |= {80: maybe["rest"], 88: maybe["weight"], 96: -100}
    call |= {144: maybe["row_scale"], 152: 1}
    call |= {160: maybe["aux"], 168: maybe["threshold"], 176: maybe["scale"]}
    call |= {184: pointer(20), 192: pointer(21), 200: maybe["topk_diffs"]}
    call |= {216: (0, pointer(apart)), 224: v + apart}
    tile = ((v + 2 * each - 2) // each + cluster - 1) // cluster
    shape = {0: threads, 4: cluster, 8: tile, 12: cluster, 16: 1}
    params: Params = {(0, at): x for at, x in call.items()}
    params |= {(1, at): x for at, x in shape.items()}
    special = {"%ctaid.x": 2 * cluster - 1, "%cluster_ctarank": cluster - 1}
    return params, special | ({"%ntid.x": threads} if threads else {})


def two_class_layout(select: int, dense: bool, blocks: int) -> Layout:
    """``TwoClass`` of w2s_cuda.h, the gradient in place."""
    call, _ = cuda_layout(2, 4, dense)
    params: Params = {at: x for at, x in call.items() if at[0] == 0}
    params |= {(0, 0): 5000, (0, 184): (0, pointer(20)), (0, 192): pointer(21)}
    params |= {(0, 248): select, (0, 252): 1, (0, 256): pointer(22), (0, 264): pointer(23)}
    params |= {(0, 272): (0, pointer(24)), (0, 280): pointer(25), (0, 288): 1, (0, 296): (0, 1)}
    return params, {"%ctaid.x": blocks // 2, "%nctaid.x": blocks, "%ntid.x": 256}


def quantile_layout(n: int, keep: int, blocks: int) -> Layout:
    call: Any = {0: n + 5, 8: pointer(0) + 4, 24: keep, 32: (0, pointer(2)), 40: (0, pointer(3))}
    call |= {48: pointer(4), 56: pointer(5)}
    return {(0, at): x for at, x in call.items()}, {"%ctaid.x": blocks // 2, "%nctaid.x": blocks}


def contrastive_layout(m: int, apart: bool) -> Layout:
    """``Contrastive`` of contrastive.h."""
    call: Any = {0: 5, 8: m, 16: pointer(0), 24: m, 32: pointer(2)}
    call |= {40: (0, pointer(3)), 48: pointer(4), 56: (0, pointer(5)), 80: (0, pointer(6))}
    call |= {88: pointer(7), 96: 5, 104: (0, pointer(1 if apart else 0)), 112: m}
    return {(0, at): x for at, x in call.items()}, {"%ctaid.x": 1}
