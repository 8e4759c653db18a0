"""Step-level preference pairs from search trees: siblings after the same prefix.

    prompt   = the task's prompt and the steps of the path to the parent
    chosen   = the child of the highest value
    rejected = the child of the lowest value

for every parent, if the values differ by at least ``margin``. The pair differs in the step where
the paths part, so the loss falls on that fragment and not on the whole response.

Source: Zeng et al. 2025 (arXiv 2501.09766), section 3. Choice of siblings, margin, the limit on
common words and the least value of a chosen step are those of their released code.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from w2s_fast.errors import W2SError
from w2s_fast.preference_pairs.trees import Tree, TreeNode
from w2s_fast.reasoning.rows import Row

CHOICES = ("extremes", "all")
Place = tuple[Hashable, ...]  # (task, node) or (task, node, node)


@dataclass(frozen=True)
class StepReport:
    """What became of parents, nodes and candidate pairs.

    A parent is named by its task and node, (task, None) for the parent of the first steps. A
    candidate is named by task, node of the higher value and node of the lower one; it is in exactly
    one of the tuples from ``paired`` to ``capped``.

    Attributes:
        n_parents: Parents of at least one step.
        no_siblings: Parents of a single step.
        too_few: Parents of several steps, of which fewer than two have a text and a value.
        blank: Nodes with siblings whose text is blank; they are no side of a pair.
        no_value: Nodes with siblings that have no value; they are no side of a pair.
        paired: Candidates that are pairs.
        ties: Values differ by less than the margin.
        equal_texts: Both steps are the same text.
        similar: The steps have more common words than allowed.
        low_value: The higher value is below the least value of a chosen step.
        capped: Beyond the largest number of pairs of a parent.
    """

    n_parents: int
    no_siblings: tuple[Place, ...]
    too_few: tuple[Place, ...]
    blank: tuple[Place, ...]
    no_value: tuple[Place, ...]
    paired: tuple[Place, ...]
    ties: tuple[Place, ...]
    equal_texts: tuple[Place, ...]
    similar: tuple[Place, ...]
    low_value: tuple[Place, ...]
    capped: tuple[Place, ...]

    def __str__(self) -> str:
        counts = ", ".join(f"{len(v)} {k}" for k, v in vars(self).items() if k != "n_parents")
        return f"{self.n_parents} parents: {counts}"


@dataclass(frozen=True)
class StepPairs:
    """Pairs of sibling steps.

    Attributes:
        rows: Rows of id ("task/better>worse"), prompt, chosen and rejected, in the order of trees
            and parents.
        report: What became of parents, nodes and candidate pairs.
    """

    rows: tuple[Row, ...]
    report: StepReport


def step_pairs(
    trees: Sequence[Tree],
    *,
    choose: str = "extremes",
    margin: float = 0.1,
    min_value: float | None = None,
    max_overlap: float = 0.95,
    max_pairs: int | None = None,
    separator: str = "",
) -> StepPairs:
    """Build preference pairs of sibling steps from search trees.

    Args:
        trees: Trees of `read_trees`, with different ids.
        choose: "extremes": the best and the worst child of a parent; "all": all pairs of children,
            those that differ most in value first.
        margin: Least difference of the two values, above 0.
        min_value: Least value of a chosen step; None: no limit. The released code uses -0.3 on its
            own scale of rewards.
        max_overlap: Largest share of common words, |A and B| / min(|A|, |B|) with the sets A and B
            of the words of both steps; 1: no limit.
        max_pairs: Largest number of pairs of one parent; None: no limit.
        separator: Text between prompt and step and between steps; by default texts are joined as
            they are.

    Returns:
        Rows of pairs, and what became of parents, nodes and candidates.

    Raises:
        W2SError: There are no trees, a task occurs twice, or a setting is out of its range.
    """
    _check_settings(trees, choose, margin, max_overlap, max_pairs)
    if min_value is not None and not math.isfinite(min_value):
        raise W2SError(f"min_value is {min_value}; expected a number, or None for no limit")
    places: dict[str, list[Place]] = {
        name: [] for name in StepReport.__dataclass_fields__ if name != "n_parents"
    }
    rows: list[Row] = []
    n_parents = 0
    for tree in trees:
        for parent, children in tree.children().items():
            if parent is None and len(children) == 1 and not children[0].text.strip():
                continue  # a root without a text is no step
            n_parents += 1
            sides = _sides(tree.id, parent, children, places)
            found = 0
            for better, worse in _candidates(sides, choose):
                outcome = _outcome(better, worse, margin, min_value, max_overlap)
                if outcome == "paired" and max_pairs is not None and found == max_pairs:
                    outcome = "capped"
                places[outcome].append((tree.id, better.id, worse.id))
                if outcome == "paired":
                    found += 1
                    prefix = separator.join([tree.prompt, *filter(None, tree.path(parent))])
                    rows.append(_row(tree.id, prefix, better, worse, separator))
    lists = {name: tuple(items) for name, items in places.items()}
    return StepPairs(tuple(rows), StepReport(n_parents, **lists))


def _sides(
    task: Hashable,
    parent: Hashable,
    children: Sequence[TreeNode],
    places: dict[str, list[Place]],
) -> list[TreeNode]:
    """Return the children that can be a side of a pair, and record the others."""
    if len(children) == 1:
        places["no_siblings"].append((task, parent))
        return []
    sides = []
    for node in children:
        if not node.text.strip():
            places["blank"].append((task, node.id))
        elif node.value is None:
            places["no_value"].append((task, node.id))
        else:
            sides.append(node)
    if len(sides) < 2:
        places["too_few"].append((task, parent))
        return []
    return sides


def _candidates(sides: Sequence[TreeNode], choose: str) -> Iterator[tuple[TreeNode, TreeNode]]:
    """Yield (better, worse); of equal values the earlier node is first."""
    if not sides:
        return
    ranked = sorted(sides, key=lambda node: -_value(node))
    if choose == "extremes":
        yield ranked[0], ranked[-1]
        return
    pairs = combinations(ranked, 2)
    yield from sorted(pairs, key=lambda pair: _value(pair[1]) - _value(pair[0]))


def _outcome(
    better: TreeNode, worse: TreeNode, margin: float, min_value: float | None, max_overlap: float
) -> str:
    if _value(better) - _value(worse) < margin:
        return "ties"
    if better.text.strip() == worse.text.strip():
        return "equal_texts"
    if _overlap(better.text, worse.text) > max_overlap:
        return "similar"
    if min_value is not None and _value(better) < min_value:
        return "low_value"
    return "paired"


def _overlap(one: str, other: str) -> float:
    """Return the share of common words of the text with fewer different words."""
    a, b = set(one.split()), set(other.split())
    return len(a & b) / min(len(a), len(b))


def _value(node: TreeNode) -> float:
    assert node.value is not None
    return node.value


def _row(task: Hashable, prefix: str, better: TreeNode, worse: TreeNode, separator: str) -> Row:
    return {
        "id": f"{task}/{better.id}>{worse.id}",
        "prompt": prefix + separator,
        "chosen": better.text,
        "rejected": worse.text,
    }


def _check_settings(
    trees: Sequence[Tree], choose: str, margin: float, max_overlap: float, max_pairs: int | None
) -> None:
    if not len(trees):
        raise W2SError("trees are empty; expected at least one tree")
    ids = [tree.id for tree in trees]
    if len(set(ids)) != len(ids):
        twice = next(task for task in ids if ids.count(task) > 1)
        raise W2SError(f"task {twice!r} occurs {ids.count(twice)} times; expected different ids")
    if choose not in CHOICES:
        raise W2SError(f"choose is {choose!r}; expected one of {', '.join(CHOICES)}")
    if not 0 < margin < float("inf"):
        raise W2SError(f"margin is {margin}; expected a number above 0")
    if not 0 <= max_overlap <= 1:
        raise W2SError(f"max_overlap is {max_overlap}; expected a number in [0, 1]")
    if max_pairs is not None and (isinstance(max_pairs, bool) or max_pairs < 1):
        raise W2SError(f"max_pairs is {max_pairs}; expected at least 1, or None for no limit")
