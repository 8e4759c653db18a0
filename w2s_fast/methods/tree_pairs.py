"""Iterated finetuning: a warm-up from easy to hard, then rounds of pairs from search trees.

The student first learns the weak labels in stages by perplexity. Every round then takes step-level
pairs from a file of search trees, prefers the better step by a preference loss, and starts, as its
reference, from the student of the round before. The trees of a round are searched with that
student, so a run with one more file continues a finished one: what is done is reused.

Source: Zeng et al. 2025 (arXiv 2501.09766): SimPO with beta 2.5, and the pairs of `step_pairs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, choice, number
from w2s_fast.methods._plan import Node, Plan
from w2s_fast.methods._texts import PairLabels, Prompts

if TYPE_CHECKING:
    from w2s_fast.preference_pairs import StepReport, Tree


@dataclass(frozen=True, kw_only=True)
class TreePairs(Method):
    """Learn sibling steps of search trees by a preference loss, round after round.

    Attributes:
        files: Files of `read_trees`, one a round, with ";" between two of them. The prompt of a
            tree is the prompt of a transfer item; other trees are counted and not used.
        warm_up: Stages of the warm-up on the weak labels, 1 for no order; 0: no warm-up, the
            student starts from its pretrained weights.
        loss: Preference loss of the pairs, with at most one setting.
        pick, margin, max_overlap, max_pairs: ``choose``, ``margin``, ``max_overlap`` and
            ``max_pairs`` of `step_pairs`; ``max_pairs=0``: no limit.
        text, value: Fields of a node, see `read_trees`.
    """

    kinds = ("generation",)

    files: str = ""
    warm_up: int = number(3, 0)
    loss: str = "simpo:beta=2.5"
    pick: str = choice("extremes", ("extremes", "all"))
    margin: float = number(0.1, 0.0)
    max_overlap: float = number(0.95, 0.0, 1.0)
    max_pairs: int = number(0, 0)
    text: str = "text"
    value: str = "value"

    @property
    def rounds(self) -> tuple[str, ...]:
        """The file of every round."""
        return tuple(path.strip() for path in self.files.split(";"))

    def files_read(self) -> tuple[str, ...]:
        return self.rounds

    def check_task(self, n_classes: int, n_rows: int) -> None:
        """Read all files, so that a fault ends the run before anything is computed."""
        if not all(self.rounds):
            raise W2SError(
                f"tree_pairs: files is {self.files!r}; expected paths of files of search trees, "
                "with ';' between two of them"
            )
        for path in self.rounds:
            self._trees(path)

    def initial(self, plan: Plan, labels: Node) -> Node | None:
        student = None
        if self.warm_up:
            order: dict[str, Any] = {"stages": self.warm_up} if self.warm_up > 1 else {}
            student = plan.student(labels, **order)
        for path in self.rounds[:-1]:
            student = plan.student(self._round(plan, path), student, loss=self.loss)
        return student

    def labels(self, plan: Plan, labels: Node) -> Node:
        return self._round(plan, self.rounds[-1])

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"loss": self.loss}

    def pairs(self, prompts: Prompts, seed: int) -> PairLabels:
        """Return the pairs of the only file, after the steps that lead to them."""
        from w2s_fast.preference_pairs import step_pairs

        (path,) = self.rounds
        trees = self._trees(path)
        row_of = {text: row for row, text in enumerate(prompts.texts)}
        own = [tree for tree in trees if tree.prompt in row_of]
        if not own:
            raise W2SError(
                f"{path}: no tree has the prompt of a transfer item, the first is "
                f"{trees[0].prompt!r}; expected trees of the prompts of this run"
            )
        found = step_pairs(
            own,
            choose=self.pick,
            margin=self.margin,
            max_overlap=self.max_overlap,
            max_pairs=self.max_pairs or None,
        )
        by_id = {tree.id: tree.prompt for tree in own}
        before = [by_id[place[0]] for place in found.report.paired]  # the task's prompt of a row
        rows = list(zip(found.rows, before, strict=True))
        return PairLabels(
            rows=np.array([row_of[prompt] for _, prompt in rows], dtype=np.int64),
            prefixes=[row["prompt"].removeprefix(prompt) for row, prompt in rows],
            chosen=[row["chosen"] for row, _ in rows],
            rejected=[row["rejected"] for row, _ in rows],
            report=_report(prompts, trees, own, found.report),
        )

    def _round(self, plan: Plan, path: str) -> Node:
        # The same pairs for every warm-up and loss, and of one file, so that they are made once.
        plain = type(self)()
        maker = replace(self, files=path, warm_up=plain.warm_up, loss=plain.loss)
        return plan.apply_texts(maker.pairs, pairs=True)

    def _trees(self, path: str) -> tuple[Tree, ...]:
        from w2s_fast.preference_pairs import read_trees

        return read_trees(path, text=self.text, value=self.value)


def _report(
    prompts: Prompts, trees: Sequence[Tree], own: Sequence[Tree], report: StepReport
) -> dict[str, Any]:
    """Return what became of trees, items, parents, nodes and candidates, as JSON values."""
    searched = {tree.prompt for tree in own}
    counts = {
        name: ["/".join(map(str, place)) for place in value]
        for name, value in vars(report).items()
        if name not in ("n_parents", "paired")
    }
    return {
        "trees": len(own),
        "trees_of_other_prompts": [str(t.id) for t in trees if t.prompt not in searched],
        "items_without_tree": [
            item for item, text in zip(prompts.ids, prompts.texts, strict=True)
            if text not in searched
        ],
        "parents": report.n_parents,
        "paired": len(report.paired),
        **counts,
    }  # fmt: skip
