"""Search trees from a file of JSON lines, one task a line.

    {"id": "t1", "prompt": "...", "nodes": [
      {"id": 0, "parent": null, "text": "get_weather(", "value": 0.4},
      {"id": 1, "parent": 0, "text": "city='Rome')", "value": 0.9}, ...]}

A node is a step: its text continues the prompt and the texts of its ancestors. A node whose parent
is null is a first step, so several nodes may have none; a root with an empty text is allowed, too.
``value`` is the node's estimate of quality, higher is better: a mean return, a Q value or a reward.
It may be null or not finite where a search did not evaluate the node. Other fields are not read.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError, is_unicode, nearest
from w2s_fast.paths import user_path
from w2s_fast.tasks._files import check_file

NodeId = str | int


@dataclass(frozen=True)
class TreeNode:
    """One step of a search tree.

    Attributes:
        id: The node's id, unique in its tree.
        parent: Id of the node that this one continues, or None for a first step.
        text: The step.
        value: Estimate of quality, higher is better; None where there is none.
    """

    id: NodeId
    parent: NodeId | None
    text: str
    value: float | None


@dataclass(frozen=True)
class Tree:
    """The search tree of one task.

    Attributes:
        id: The task's id.
        prompt: Text that the first steps continue.
        nodes: The steps in any order.

    Raises:
        W2SError: An id occurs twice, a parent is not in the tree, or a node is its own ancestor.
    """

    id: Hashable
    prompt: str
    nodes: tuple[TreeNode, ...]

    def __post_init__(self) -> None:
        _check_ids(self)
        _check_parents(self)

    def children(self) -> dict[NodeId | None, list[TreeNode]]:
        """Return the children of every node that has some; those of None are the first steps."""
        groups: dict[NodeId | None, list[TreeNode]] = {}
        for node in self.nodes:
            groups.setdefault(node.parent, []).append(node)
        return groups

    def path(self, node_id: NodeId | None) -> list[str]:
        """Return the texts from the first step to a node, inclusive; none for None."""
        texts: list[str] = []
        while node_id is not None:
            node = self._by_id[node_id]
            texts.append(node.text)
            node_id = node.parent
        return texts[::-1]

    @cached_property
    def _by_id(self) -> dict[NodeId, TreeNode]:
        return {node.id: node for node in self.nodes}


def read_trees(path: str | Path, *, text: str = "text", value: str = "value") -> tuple[Tree, ...]:
    """Read search trees from a file of JSON lines; blank lines are skipped.

    Args:
        path: A .jsonl file in UTF-8.
        text: Field of a node that holds its text.
        value: Field of a node that holds its value.

    Raises:
        W2SError: The file cannot be read, a line does not have the format (the message names file,
            line and node), two tasks have one id, or no node has a value.
    """
    file = user_path(path, "path")
    check_file(file)
    trees = []
    for number, line in enumerate(_content(file).split("\n"), start=1):
        if line.strip():
            where = f"{file}: line {number}"
            trees.append(tree_from_record(_record(line, where), where, text=text, value=value))
    if not trees:
        raise W2SError(f"{file} has only blank lines; expected one task per line")
    _check_trees(trees, file, value)
    return tuple(trees)


def tree_from_record(
    record: Any, where: str = "tree", *, text: str = "text", value: str = "value"
) -> Tree:
    """Check a task with its nodes, as one line of a file has it, and return its tree.

    Args:
        record: A mapping with the keys id, prompt and nodes.
        where: Beginning of error messages, such as file and line.
        text, value: As in `read_trees`.

    Raises:
        W2SError: A key is missing, a value does not fit, an id occurs twice, a parent is not in the
            tree, or the parents of a node lead back to it.
    """
    task_id, prompt, nodes = (_get(record, key, where) for key in ("id", "prompt", "nodes"))
    if not _is_id(task_id):
        raise W2SError(f"{where}: id is {task_id!r}; expected a text or an integer")
    here = f"{where}, task {task_id!r}"
    if not isinstance(prompt, str) or not prompt.strip() or not is_unicode(prompt):
        raise W2SError(f"{here}: prompt is {prompt!r}; expected a text that is not blank")
    if not isinstance(nodes, list) or not nodes:
        raise W2SError(f"{here}: nodes are {nodes!r}; expected a list of at least one node")
    steps = tuple(_node(node, here, text, value) for node in nodes)
    try:
        return Tree(task_id, prompt, steps)
    except W2SError as error:
        raise W2SError(f"{where}, {error}") from error


def _content(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise W2SError(f"{file}: {error.strerror}; give the path of a file you may read") from error
    except UnicodeDecodeError as error:
        raise W2SError(
            f"{file}: byte {error.start} is not UTF-8; expected JSON lines in UTF-8"
        ) from error


def _record(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise W2SError(f"{where} is no JSON: {error}; expected one object per line") from error


def _get(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, Mapping):
        raise W2SError(f"{where} is a {type(record).__name__}; expected an object with {key!r}")
    if key not in record:
        raise W2SError(
            f"{where} has the keys {', '.join(map(repr, record))}; expected also {key!r}"
            f"{nearest(key, map(str, record))}"
        )
    return record[key]


def _node(record: Any, where: str, text: str, value: str) -> TreeNode:
    node_id = _get(record, "id", f"{where}: a node")
    if not _is_id(node_id):
        raise W2SError(f"{where}: the id of a node is {node_id!r}; expected a text or an integer")
    here = f"{where}, node {node_id!r}"
    parent, step, number = (_get(record, key, here) for key in ("parent", text, value))
    if parent is not None and not _is_id(parent):
        raise W2SError(f"{here}: parent is {parent!r}; expected the id of a node, or null")
    if not isinstance(step, str) or not is_unicode(step):
        raise W2SError(f"{here}: {text} is {step!r}; expected a text")
    if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
        raise W2SError(f"{here}: {value} is {number!r}; expected a number, or null for no value")
    return TreeNode(node_id, parent, step, _finite(number))


def _finite(number: int | float | None) -> float | None:
    """Return a number as a float, or None if it is not one or is beyond the range of floats."""
    try:
        return None if number is None or not math.isfinite(number) else float(number)
    except OverflowError:
        return None


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _check_ids(tree: Tree) -> None:
    # Ids of rows are texts, so 1 and "1" are one id.
    node_id, n = Counter(str(node.id) for node in tree.nodes).most_common(1)[0]
    if n > 1:
        raise W2SError(f"task {tree.id!r}: node {node_id} occurs {n} times; expected different ids")


def _check_parents(tree: Tree) -> None:
    parents = {node.id: node.parent for node in tree.nodes}
    for node_id, parent in parents.items():
        if parent is not None and parent not in parents:
            raise W2SError(
                f"task {tree.id!r}, node {node_id!r}: parent {parent!r} is no node of the tree"
                f"{nearest(str(parent), map(str, parents))}; expected one, or null"
            )
    reached: set[NodeId] = set()
    for node_id in parents:
        branch: dict[NodeId, None] = {}
        at: NodeId | None = node_id
        while at is not None and at not in reached:
            if at in branch:
                raise W2SError(
                    f"task {tree.id!r}, node {at!r}: its ancestors lead back to it; expected every "
                    "node to descend from one whose parent is null"
                )
            branch[at] = None
            at = parents[at]
        reached.update(branch)


def _check_trees(trees: list[Tree], file: Path, value: str) -> None:
    task_id, n = Counter(str(tree.id) for tree in trees).most_common(1)[0]
    if n > 1:
        raise W2SError(f"{file}: task {task_id} occurs {n} times; expected one line per task")
    if all(node.value is None for tree in trees for node in tree.nodes):
        raise W2SError(
            f"{file}: no node has a number in {value!r}; expected values of the nodes, so pass "
            "the name of their field"
        )
