"""Format the rows of ``python -m bench gpu`` as text."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
_COLUMNS = (
    "provider", "ms p20 / p50 / p80", "target ms", "/ ours", "peak MiB", "GB/s", "TFLOP/s",
    "/ ceiling", "error",
)  # fmt: skip


def table(rows: list[Row]) -> str:
    """Return environment, parts, and a block per case.

    ``/ ours`` above 1: ours is faster. Targets are for an H200.
    """
    lines = [*_environment(rows), *_parts(rows), *_parity(rows)]
    limit = next((r for r in rows if r.get("kind") == "ceilings"), {})
    if limit:
        lines.append(
            f"ceilings: copy {limit['copy_gbps']:.0f} GB/s, GEMM bf16 "
            f"{limit['gemm_bf16_tflops']:.0f}, fp32 {limit['gemm_fp32_tflops']:.0f} TFLOP/s"
        )
    cases: dict[str, list[Row]] = {}
    for r in rows:
        if r.get("kind") in ("time", "skipped"):
            size = f"{r['n']} x {r['v']}" + (f", D {r['d']}" if r.get("d") else "")
            cases.setdefault(f"{r['op']} {r['case']}, {size}, {r['dtype']}", []).append(r)
    for title, measured in cases.items():
        lines += ["", title, *_block(measured, limit)]
    return "\n".join(lines) if lines else "no rows yet"


def _environment(rows: list[Row]) -> list[str]:
    return [
        f"{r.get('gpu')} ({r.get('memory_gib')} GiB), driver {r.get('driver_version')}, "
        f"torch {r.get('torch')}, CUDA {r.get('cuda')}, triton {r.get('triton')}, "
        f"commit {r.get('git_sha')}{' with changes' if r.get('dirty') else ''}"
        for r in rows
        if r.get("kind") == "environment"
    ]


def _parts(rows: list[Row]) -> list[str]:
    return [
        f"{r['part']}: {'ok' if r['ok'] else 'FAILED (' + str(r.get('exit')) + ')'} "
        f"{r['seconds']} s {r.get('last_line', '')}".rstrip()
        for r in rows
        if r.get("kind") == "part"
    ]


def _parity(rows: list[Row]) -> list[str]:
    lines = []
    for r in rows:
        if r.get("kind") == "parity":
            right = r["calls"] - len(r["failed"])
            lines.append(f"{r['backend']}: {right} of {r['calls']} calls within the error budget")
            lines += [f"  {why}" for why in r["failed"]]
    return lines


def _block(rows: list[Row], limit: Row) -> list[str]:
    cells = [_COLUMNS, *(_cells(r, limit) for r in rows if r["kind"] == "time")]
    widths = [max(len(c[i]) for c in cells) for i in range(len(_COLUMNS))]
    lines = ["  " + "  ".join(x.ljust(w) for x, w in zip(c, widths, strict=True)) for c in cells]
    lines += [f"  {r['provider']}: {r['why']}" for r in rows if r["kind"] == "skipped"]
    return [line.rstrip() for line in lines]


def _cells(r: Row, limit: Row) -> tuple[str, ...]:
    name = f"{r['provider']} ({r['backend']})" if "backend" in r else r["provider"]
    errors = [f"{k.removesuffix('_err')} {x:.1e}" for k, x in r.items() if k.endswith("_err")]
    return (
        name,
        " / ".join(f"{r[k]:.4g}" for k in ("ms_p20", "ms_p50", "ms_p80")),
        _target(r),
        _number(r, "ratio_to_ours", ".2f"),
        _number(r, "peak_mib", ".0f"),
        _number(r, "gbps", ".0f"),
        _number(r, "tflops", ".0f"),
        _share(r, limit),
        ", ".join(errors),
    )


def _number(r: Row, name: str, form: str) -> str:
    return format(r[name], form) if name in r else ""


def _target(r: Row) -> str:
    """Return the target of our row (for an H200) and whether it is met."""
    if "target_ms" not in r or not r["provider"].startswith("ours"):
        return ""
    return f"{r['target_ms']:g} {'met' if r['ms_p50'] <= r['target_ms'] else 'missed'}"


def _share(r: Row, limit: Row) -> str:
    """Return flops as a share of the GEMM of the same dtype, else bytes as a share of the copy."""
    for rate, best in (("tflops", f"gemm_{r['dtype']}_tflops"), ("gbps", "copy_gbps")):
        if rate in r and limit.get(best):
            return f"{r[rate] / limit[best]:.0%}"
    return ""
