"""The format of search trees, and errors that name file, line and node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from w2s_fast.errors import W2SError
from w2s_fast.preference_pairs import Tree, TreeNode, read_trees, tree_from_record


def node(node_id: Any, parent: Any = None, text: Any = "t", value: Any = 0.5) -> dict[str, Any]:
    return {"id": node_id, "parent": parent, "text": text, "value": value}


def task(*nodes: Any, **changes: Any) -> dict[str, Any]:
    return {"id": "t1", "prompt": "p", "nodes": list(nodes), **changes}


def write(path: Path, *records: Any) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_read(tmp_path: Path) -> None:
    first = task(node(2, 1, "c", None), node(1, None, "a"), node("x", 1, "", 1), seen=True)
    path = write(tmp_path / "t.jsonl", first, "", task(node(0, value=float("nan")), id=7))
    one, two = read_trees(path)
    assert one.id == "t1" and one.prompt == "p" and two.id == 7
    assert one.nodes[0] == TreeNode(2, 1, "c", None) and one.nodes[2].value == 1.0
    assert two.nodes[0].value is None
    assert {k: [n.id for n in v] for k, v in one.children().items()} == {1: [2, "x"], None: [1]}
    assert one.path(2) == ["a", "c"] and one.path(None) == []


def test_other_field_names_and_a_byte_order_mark(tmp_path: Path) -> None:
    record = task({"id": 1, "parent": None, "step": "s", "Q": 3})
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(record).encode() + b"\r\n")
    (tree,) = read_trees(path, text="step", value="Q")
    assert tree.nodes == (TreeNode(1, None, "s", 3.0),)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf"), 10**400])
def test_values_that_are_none(value: Any) -> None:
    assert tree_from_record(task(node(1, value=value))).nodes[0].value is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "line 2 is no JSON"),
        ("[" * 100000, "line 2 is no JSON"),
        ("3", "line 2 is a int; expected an object"),
        ({"id": 1, "prompts": "p", "nodes": []}, "did you mean 'prompts'"),
        (task(id=None), "line 2: id is None"),
        (task(id=True), "line 2: id is True"),
        (task(id=""), "line 2: id is ''"),
        (task(node(1), prompt=" "), "line 2, task 't1': prompt is ' '"),
        (task(node(1), prompt="\ud800"), "line 2, task 't1': prompt is"),
        (task(), r"line 2, task 't1': nodes are \[\]"),
        (task(nodes={}), "line 2, task 't1': nodes are {}"),
        (task(5), "line 2, task 't1': a node is a int"),
        (task({"id": 1}), "line 2, task 't1', node 1 has the keys 'id'; expected also 'parent'"),
        (task({"parent": 1}), "task 't1': a node has the keys 'parent'; expected also 'id'"),
        (task(node(None)), "task 't1': the id of a node is None"),
        (task(node(1.5)), "task 't1': the id of a node is 1.5"),
        (task(node(1, [2])), r"node 1: parent is \[2\]"),
        (task(node(1, text=None)), "node 1: text is None"),
        (task(node(1, text="\ud800")), "node 1: text is"),
        (task(node(1, value="0.5")), "node 1: value is '0.5'"),
        (task(node(1, value=True)), "node 1: value is True"),
        (task(node(1), node(1)), "line 2, task 't1': node 1 occurs 2 times"),
        (task(node(1), node("1")), "line 2, task 't1': node 1 occurs 2 times"),
        (task(node("step1"), node(2, "step")), "node 2: parent 'step' is no node .* 'step1'"),
        (task(node(1), node(2, 3), node(3, 2)), "task 't1', node 2: its ancestors lead"),
        (task(node(1, 1)), "line 2, task 't1', node 1: its ancestors lead back"),
        (task(node(1), id="good"), "task good occurs 2 times"),
    ],
)  # fmt: skip
def test_errors_name_file_line_and_node(tmp_path: Path, record: Any, message: str) -> None:
    path = write(tmp_path / "t.jsonl", task(node(0), id="good"), record)
    with pytest.raises(W2SError, match=message) as error:
        read_trees(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_files_without_trees(tmp_path: Path) -> None:
    with pytest.raises(W2SError, match="no such file"):
        read_trees(tmp_path / "missing.jsonl")
    with pytest.raises(W2SError, match="path is empty"):
        read_trees("")
    path = tmp_path / "t.jsonl"
    path.write_text("\n \n")
    with pytest.raises(W2SError, match="only blank lines"):
        read_trees(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(W2SError, match="byte 0 is not UTF-8"):
        read_trees(path)
    write(path, task(node(1, value=None)))
    with pytest.raises(W2SError, match="no node has a number in 'value'"):
        read_trees(path)


def test_a_tree_made_in_python_is_checked() -> None:
    with pytest.raises(W2SError, match="node 1: its ancestors lead back"):
        Tree("t", "p", (TreeNode(1, 1, "a", 0.0),))
    deep = Tree(
        "t", "p", tuple(TreeNode(i, i + 1 if i < 3000 else None, "a", 0.0) for i in range(3001))
    )
    assert len(deep.path(0)) == 3001
