"""One case of the campaign of attribution, on two hosts of two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from campaigns import attribution
from helpers import ranks
from helpers.cluster import without

pytestmark = [
    pytest.mark.slow,
    pytest.mark.dist,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(without()), reason=without()),
]


@ranks.minutes  # test_two_hosts.py has another fault of the kind
def test_the_rank_of_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    index = list(attribution.FAULTS).index("NaN")
    outcome = attribution.run([index], 0, tmp_path)
    assert not outcome.failures
    assert outcome.kinds == {"NaN": 1, "in time": 1, "right rank and cause": 1}


@pytest.mark.parametrize(
    ("line", "ranks"),
    [
        ("w2s-fast: lost rank 2 on node-b; this job ends", {2}),
        ("w2s-fast: lost rank 2 on node-b, rank 3 on node-b: silent for 15 s", {2, 3}),
        ("w2s-fast: error: numpy is 9 on node-b (rank 3), 2 elsewhere (rank 0 on node-a)", {3}),
        (
            "w2s-fast: error: the loss is nan in the rows of rank 1 on node-a (rank 0 on node-a)",
            {1},
        ),
        ("w2s-fast: error: could not be written by rank 0: no space (rank 2 on node-b)", {0}),
        ("w2s-fast: error: no space left while writing x (rank 0 on node-a)", {0}),
        ("w2s-fast: error: something else (rank 0 on node-a)", set()),
    ],
)
def test_the_ranks_that_a_line_blames(line: str, ranks: set[int]) -> None:
    assert attribution.named_ranks(line) == ranks
