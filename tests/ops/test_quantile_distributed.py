"""Order statistics over ranks: equal to those of all scores in one place. Real processes, gloo.

Run as a program this file is one rank.
"""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

import pytest
import torch
from helpers import ranks
from torch import Tensor

import w2s_fast
from w2s_fast.ops import dispatch, use_backend

SIZES = {4: (0, 700, 33, 1500), 2: (901, 5)}


@pytest.mark.slow
@pytest.mark.dist
def test_ranks_agree_with_one_place() -> None:
    """Every backend in turn on the same four processes: starting them is what takes the time."""
    ranks.run(__file__, 4, [b for b in ("ref", "cpp", "triton") if not dispatch.missing(b)])


def test_messages_do_not_grow(one_rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three counts of 2049 numbers and one minimum, for any number of scores."""
    sent: list[int] = []
    send = torch.distributed.all_reduce

    def counted(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(x.numel() * x.element_size())
        return send(x, *args, **kwargs)

    for name in ("broadcast", "all_gather", "all_gather_into_tensor", "all_gather_object"):
        monkeypatch.setattr(torch.distributed, name, None)  # no other collective is called
    monkeypatch.setattr(torch.distributed, "all_reduce", counted)
    for n in (0, 1, 100_000):
        sent.clear()
        w2s_fast.quantile(torch.linspace(-1, 1, n), 0.5, group=one_rank)
        assert sent == [2049 * 8] * 3 + [4]


def part(x: Tensor, sizes: tuple[int, ...], rank: int) -> Tensor:
    return x[sum(sizes[:rank]) : sum(sizes[: rank + 1])]


def check(x: Tensor, keep: Tensor | None, world: int, rank: int, group: object) -> None:
    """Every statistic of rank's part of ``x``, bit for bit that of the whole."""
    sizes = SIZES[world]
    mine = part(x, sizes, rank)
    mask = None if keep is None else part(keep, sizes, rank)
    n_kept = x.numel() if keep is None else int(keep.sum())
    for q in (0.31, 1.0):
        actual = w2s_fast.quantile(mine, q, keep=mask, group=group)
        with use_backend("ref"):
            expected = w2s_fast.quantile(x, q, keep=keep)
        assert actual.dtype == expected.dtype and torch.equal(actual, expected), (
            q,
            actual,
            expected,
        )
        chosen = w2s_fast.top_fraction_mask(mine, q, keep=mask, group=group)
        with use_backend("ref"):
            whole = w2s_fast.top_fraction_mask(x, q, keep=keep)
        assert int(whole.sum()) == round(q * n_kept)
        assert torch.equal(chosen, part(whole, sizes, rank)), q
    for k in (1, n_kept):
        actual = w2s_fast.kth_value(mine, k, keep=mask, group=group)
        with use_backend("ref"):
            assert torch.equal(actual, w2s_fast.kth_value(x, k, keep=keep))
    assert math.isnan(w2s_fast.kth_value(mine, n_kept + 1, keep=mask, group=group))


def check_odd_scores(world: int, rank: int, group: object) -> None:
    sizes = SIZES[world]
    n = sum(sizes)
    none = torch.zeros(n, dtype=torch.bool)
    mine, mask = part(torch.randn(n), sizes, rank), part(none, sizes, rank)
    assert float(w2s_fast.quantile(mine, 0.5, keep=mask, group=group)) == math.inf
    assert not w2s_fast.top_fraction_mask(mine, 1.0, keep=mask, group=group).any()
    bad = torch.zeros(n)
    bad[-1] = math.nan  # on the last rank only; all ranks must say so
    mine = part(bad, sizes, rank)
    assert math.isnan(w2s_fast.quantile(mine, 0.1, group=group))
    assert math.isnan(w2s_fast.kth_value(mine, 1, group=group))
    assert not w2s_fast.top_fraction_mask(mine, 0.5, group=group).any()
    assert float(w2s_fast.quantile(mine, 0.1, keep=~mine.isnan(), group=group)) == 0.0


def main(backends: list[str]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    pair = torch.distributed.new_group([0, 1])
    groups = {4: torch.distributed.group.WORLD}
    if rank < 2:
        groups[2] = pair
    else:
        with pytest.raises(w2s_fast.W2SError, match="not a member"):
            w2s_fast.quantile(torch.zeros(3), 0.5, group=pair)
    for world, group in groups.items():
        g = torch.Generator().manual_seed(world)
        n = sum(SIZES[world])
        x = torch.randn(n, generator=g) * 2
        keep = torch.rand(n, generator=g) < 0.7
        inf = torch.where(x > 1.5, math.inf, torch.where(x < -1.5, -math.inf, x))
        for backend in backends:
            with use_backend(backend):
                check(x, keep, world, rank, group)
                check(x.mul(2).round().bfloat16(), None, world, rank, group)
                check(inf, None, world, rank, group)
                check_odd_scores(world, rank, group)
        check(x.double() * math.pi, keep, world, rank, group)  # takes the reference
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    main(json.loads(sys.argv[1]))
