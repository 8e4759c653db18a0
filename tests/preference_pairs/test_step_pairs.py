"""Step pairs: which siblings, after which prefix, and what becomes of every candidate."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_fast.errors import W2SError
from w2s_fast.preference_pairs import Tree, TreeNode, step_pairs


def tree(*nodes: tuple[Any, Any, str, float | None], task: Any = "t", prompt: str = "p:") -> Tree:
    return Tree(task, prompt, tuple(TreeNode(*n) for n in nodes))


TWO_LEVELS = tree(
    (0, None, "call(", 0.5),
    (1, None, "say ", 0.1),
    (2, None, "ask ", 0.35),
    (3, 0, "x=1)", 0.9),
    (4, 0, "x=2)", 0.2),
    (5, 3, " done", 0.9),
)


def test_pairs_of_siblings_after_the_path() -> None:
    got = step_pairs([TWO_LEVELS])
    assert got.rows == (
        {"id": "t/0>1", "prompt": "p:", "chosen": "call(", "rejected": "say "},
        {"id": "t/3>4", "prompt": "p:call(", "chosen": "x=1)", "rejected": "x=2)"},
    )
    report = got.report
    assert report.paired == (("t", 0, 1), ("t", 3, 4)) and report.no_siblings == (("t", 3),)
    assert str(report) == (
        "3 parents: 1 no_siblings, 0 too_few, 0 blank, 0 no_value, 2 paired, 0 ties, "
        "0 equal_texts, 0 similar, 0 low_value, 0 capped"
    )


def test_all_pairs_and_the_cap_of_a_parent() -> None:
    got = step_pairs([TWO_LEVELS], choose="all", margin=0.1)
    assert [row["id"] for row in got.rows] == ["t/0>1", "t/2>1", "t/0>2", "t/3>4"]
    got = step_pairs([TWO_LEVELS], choose="all", margin=0.1, max_pairs=2)
    assert [row["id"] for row in got.rows] == ["t/0>1", "t/2>1", "t/3>4"]
    assert got.report.capped == (("t", 0, 2),)


def test_the_cap_counts_pairs_and_not_candidates() -> None:
    """Candidates that are no pairs leave room for others."""
    same = tree((0, None, "a", 1.0), (1, None, "a", 0.0), (2, None, "b", 0.5), (3, None, "c", 0.51))
    got = step_pairs([same], choose="all", max_pairs=1)
    assert got.report.equal_texts == (("t", 0, 1),)
    assert got.report.paired == (("t", 3, 1),) and got.report.ties == (("t", 3, 2),)
    assert sorted(got.report.capped) == [("t", 0, 2), ("t", 0, 3), ("t", 2, 1)]


@pytest.mark.parametrize(
    ("one", "other", "options", "expected"),
    [
        (("a", 0.6), ("b", 0.5), {"margin": 0.11}, "ties"),
        (("a", 0.75), ("b", 0.5), {"margin": 0.25}, "paired"),
        (("a ", 0.9), (" a", 0.1), {}, "equal_texts"),
        (("a b c", 0.9), ("c a", 0.1), {}, "similar"),
        (("a b c", 0.9), ("c a", 0.1), {"max_overlap": 1.0}, "paired"),
        (("a b c d", 0.9), ("a b e f", 0.1), {"max_overlap": 0.5}, "paired"),
        (("a b c d", 0.9), ("a b e f", 0.1), {"max_overlap": 0.49}, "similar"),
        (("a", -0.5), ("b", -0.9), {"min_value": -0.3}, "low_value"),
        (("a", -0.3), ("b", -0.9), {"min_value": -0.3}, "paired"),
        (("a", -0.5), ("b", -0.9), {}, "paired"),
    ],
)
def test_outcomes_of_a_candidate(
    one: tuple[str, float], other: tuple[str, float], options: dict[str, Any], expected: str
) -> None:
    got = step_pairs([tree((1, None, *other), (0, None, *one))], **options)
    assert getattr(got.report, expected) == (("t", 0, 1),)
    assert len(got.rows) == (expected == "paired")
    if got.rows:
        assert (got.rows[0]["chosen"], got.rows[0]["rejected"]) == (one[0], other[0])


def test_nodes_that_are_no_side() -> None:
    got = step_pairs(
        [
            tree((0, None, " ", 0.9), (1, None, "b", None), (2, None, "c", 0.1)),
            tree((0, None, "", 0.9), (1, None, "b", 0.5), (2, None, "c", 0.1), task="u"),
        ]
    )
    assert got.report.blank == (("t", 0), ("u", 0)) and got.report.no_value == (("t", 1),)
    assert got.report.too_few == (("t", None),) and got.report.paired == (("u", 1, 2),)


def test_a_root_without_text_is_no_step() -> None:
    steps = (("r", None, "", 0.5), (1, "r", "a", 0.9), (2, "r", "b", 0.1))
    got = step_pairs([tree(*steps)])
    assert got.report.n_parents == 1 and not got.report.no_siblings
    assert got.rows[0]["prompt"] == "p:"


def test_separator() -> None:
    steps = (("r", None, "", 0.5), (0, "r", "A", 0.9), (1, 0, "b", 0.9), (2, 0, "c", 0.1))
    (row,) = step_pairs([tree(*steps)], separator="\n").rows
    assert row == {"id": "t/1>2", "prompt": "p:\nA\n", "chosen": "b", "rejected": "c"}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.sampled_from(["", "a", "b", "a b", "c d"]),
            st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        ),
        min_size=1,
        max_size=10,
    ),
    st.sampled_from(["extremes", "all"]),
)
def test_every_candidate_is_in_one_group(nodes: list[Any], choose: str) -> None:
    """Chosen values exceed rejected ones by the margin, and the groups add up."""
    built = Tree(
        "t", "p",
        tuple(TreeNode(i, p if p < i else None, x, v) for i, (p, x, v) in enumerate(nodes)),
    )  # fmt: skip
    got = step_pairs([built], choose=choose, margin=0.5, max_pairs=2)
    report, values = got.report, {n.id: n.value for n in built.nodes}
    for _, better, worse in report.paired:
        assert values[better] - values[worse] >= 0.5  # type: ignore[operator]
    assert [row["id"] for row in got.rows] == [f"t/{b}>{w}" for _, b, w in report.paired]
    candidates: list[tuple[Any, ...]] = []
    for name in ("paired", "ties", "equal_texts", "similar", "low_value", "capped"):
        candidates += getattr(report, name)
    usable = {
        parent: [n for n in group if n.text.strip() and n.value is not None]
        for parent, group in built.children().items()
        if len(group) > 1
    }
    expected = 0
    for group in usable.values():
        pairs = list(combinations(group, 2))
        expected += min(len(pairs), 1) if choose == "extremes" else len(pairs)
        if choose == "extremes" and pairs:
            gaps = [abs(a.value - b.value) for a, b in pairs]  # type: ignore[operator]
            named = {(t, b, w) for t, b, w in candidates if {b, w} <= {n.id for n in group}}
            (_, b, w) = named.pop()
            assert values[b] - values[w] == max(gaps)  # type: ignore[operator]
    assert len(candidates) == len(set(candidates)) == expected
    assert len(report.too_few) == sum(len(group) < 2 for group in usable.values())


@pytest.mark.parametrize(
    ("trees", "options", "message"),
    [
        ([], {}, "trees are empty"),
        ([TWO_LEVELS, TWO_LEVELS], {}, "task 't' occurs 2 times"),
        ([TWO_LEVELS], {"choose": "best"}, "choose is 'best'; expected one of extremes, all"),
        ([TWO_LEVELS], {"margin": 0}, "margin is 0"),
        ([TWO_LEVELS], {"margin": float("nan")}, "margin is nan"),
        ([TWO_LEVELS], {"max_overlap": 1.1}, "max_overlap is 1.1"),
        ([TWO_LEVELS], {"max_pairs": 0}, "max_pairs is 0"),
        ([TWO_LEVELS], {"min_value": float("nan")}, "min_value is nan"),
    ],
)
def test_input_errors(trees: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(W2SError, match=message):
        step_pairs(trees, **options)
