"""A computation of a run, and what it needs: the nodes of the graph that a plan builds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from w2s_fast.methods._gold_uses import other_uses, transfer_uses

Settings = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Node:
    """One computation.

    Attributes:
        stage: Stage that computes it, a key of ``pipeline.job_identity.VERSIONS``.
        settings: Plain values, sorted by name.
        needs: Input nodes, by the name they have in this node.
    """

    stage: str
    settings: Settings = ()
    needs: tuple[tuple[str, Node], ...] = ()

    @property
    def gold(self) -> tuple[str, ...]:
        """Descriptions of its uses of true labels of the transfer set; empty for most nodes."""
        return transfer_uses(self.stage, dict(self.settings))

    @property
    def weak_gold(self) -> tuple[str, ...]:
        """Descriptions of its uses of other true labels, beside training weak models.

        Reports name them; unlike ``gold`` they give no access to the transfer set's true labels.
        """
        return other_uses(self.stage, dict(self.settings))


def all_nodes(roots: Iterable[Node]) -> Iterator[Node]:
    """Yield the nodes and all nodes that they need, each once."""
    pending, seen = list(roots), set[Node]()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += [needed for _, needed in node.needs]
            yield node


def spec_of(thing: Any) -> str:
    """Return a spec that builds an equal object: ``module:Class`` with all fields."""
    from dataclasses import fields

    cls = type(thing)
    settings = ",".join(f"{f.name}={getattr(thing, f.name)}" for f in fields(thing))
    return f"{cls.__module__}:{cls.__qualname__}" + (f":{settings}" if settings else "")


def trained_inputs(model: Node | None) -> dict[str, Node]:
    """Return the inputs that a stage needs to build a trained model; none for an untrained one."""
    if model is None:
        return {}
    return {"model": model, **without_none(start=dict(model.needs).get("start"))}


def with_needs(node: Node, **needs: Node | None) -> Node:
    """Return a node that needs further nodes; None is left out."""
    return replace(node, needs=(*node.needs, *without_none(**needs).items()))


def without_none(**needs: Node | None) -> dict[str, Node]:
    """Return the nodes that are not None, by name."""
    return {name: node for name, node in needs.items() if node is not None}


def make_node(
    stage: str,
    settings: Mapping[str, Any],
    needs: Mapping[str, Node] | None = None,
) -> Node:
    """Return a node with its settings sorted by name."""
    return Node(stage, tuple(sorted(settings.items())), tuple((needs or {}).items()))
