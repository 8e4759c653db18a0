"""The short tables of docs/speed.md select rows and divide by ours."""

from __future__ import annotations

from typing import Any

from bench.report import headlines
from bench.report.measured_rows import MeasuredRows


def _row(op: str, provider: str, cpu_ms: float, **more: Any) -> dict[str, Any]:
    usual = {"case": "hard", "dtype": "bf16", "n": 8, "v": 4, "d": 2, "allocator": "stock"}
    return {**usual, "op": op, "provider": provider, "cpu_ms": cpu_ms, **more}


def _both(op: str, provider: str, cpu_ms: float, **more: Any) -> list[dict[str, Any]]:
    """Rows under both allocators; recycled takes half the time."""
    recycled = _row(op, provider, cpu_ms / 2, **{**more, "allocator": "recycled"})
    return [_row(op, provider, cpu_ms, **more), recycled]


def test_losses_are_of_one_size_and_in_place() -> None:
    op, large = "cross_entropy", {"n": 4096, "v": 32000, "d": 0}
    rows = [
        *_both(op, "ours_inplace", 10, floor_ratio=1.5, **large),
        *_both(op, "eager", 120, **large),
        *_both(op, "compile", 60, **large),
        *_both(op, "ours_inplace", 1, floor_ratio=9, n=1024, v=32000, d=0),
        *_both(op, "ours_inplace", 1, floor_ratio=9, **{**large, "case": "dense"}),
    ]
    table = headlines.losses(MeasuredRows(rows)).splitlines()
    assert table[2:] == [
        "| cross-entropy, hard labels | bf16 | 10.0 / 5 | 12.0 / 12.0 | 6 / 6 | 1.5 / 1.5 |"
    ]


def test_heads_show_time_and_memory() -> None:
    op = "linear_cross_entropy"
    rows = [
        *_both(op, "ours", 10, peak_mib=100),
        *_both(op, "eager", 20, peak_mib=900),
        *_both(op, "compile", 9, peak_mib=300),
        *_both(op, "ours", 10, peak_mib=100, case="topk"),
    ]
    table = headlines.heads(MeasuredRows(rows)).splitlines()
    assert table[2:] == [
        "| cross-entropy, hard labels | bf16 | 8 x 2 x 4 | 2 / 2 | 0.9 / 0.9 | 900 / 300 / 100 |"
    ]


def test_others_take_the_largest_size_and_leave_out_what_was_not_measured() -> None:
    rows = [
        _row("info_nce", "ours", 1, n=64, v=64, peak_mib=20),
        _row("info_nce", "eager", 3, n=64, v=64, peak_mib=96, ratio_to_ours=3.0),
        _row("info_nce", "ours", 1, n=8, v=8, peak_mib=1),
        _row("info_nce", "eager", 9, n=8, v=8, peak_mib=2, ratio_to_ours=9.0),
        *_both("quantile", "ours", 2, n=1000, v=1, d=0, dtype="fp32"),
        *_both("quantile", "sort", 50, n=1000, v=1, d=0, dtype="fp32"),
        _row("heads", "loop", 1, case="epoch", losses=50.0, ratio_to_ours=6.4),
    ]
    assert headlines.others(MeasuredRows(rows)).splitlines()[2:] == [
        "| InfoNCE | eager PyTorch | bf16 | 64 x 2 x 64 | 3 | 96 / 20 |",
        "| exact quantile | `torch.sort` | fp32 | 1,000 | 25.0 / 25.0 | - |",
        "| 50 losses on cached features, one epoch | a training each | bf16 | 8 x 2 | 6.4 | - |",
    ]
