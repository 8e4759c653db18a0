"""What is added to the plan of a run for reports: the supervisor card, and ``diagnostics``."""

from __future__ import annotations

from dataclasses import replace

from w2s_fast.config import RunConfig
from w2s_fast.methods import Node, Plan, all_nodes
from w2s_fast.methods._node import make_node, without_none

FIT_EVALUATIONS = 20  # of a student whose fit is recorded


def card_node(cfg: RunConfig, plan: Plan, nodes: list[Node]) -> Node:
    """Return the supervisor card of one seed.

    Args:
        cfg: Configuration of the run.
        plan: Plan of the run.
        nodes: Nodes of all students and ceilings; if they read hidden states of the untrained
            student anyway, so does the card.
    """
    features = next((n for n in all_nodes(nodes) if _is_features_of_texts(n)), None)
    if cfg.supervisors.sources:
        predictions = {"test": plan.weak_labels(split="test")}
    else:
        predictions = {"model": plan.weak_model()}
    needs = {"labels": plan.weak_labels(), **predictions, **without_none(features=features)}
    return make_node("supervisor_card", {}, needs)


def diagnostic_nodes(cfg: RunConfig, plan: Plan, nodes: list[Node]) -> list[Node]:
    """Return the nodes of one seed that diagnostics need beside those of the students.

    Args:
        cfg: Configuration of the run.
        plan: Plan of the run.
        nodes: Nodes of all students and ceilings.
    """
    calibrator = [plan.calibrator()] if "fit" in cfg.diagnostics else []
    return calibrator + _overlap(cfg, plan, nodes)


def _overlap(cfg: RunConfig, plan: Plan, nodes: list[Node]) -> list[Node]:
    """Return the overlap density, if it is asked for or a method reads hidden states anyway."""
    default = plan.features()
    existing = [node for node in all_nodes(nodes) if _is_features_of_texts(node)]
    if "overlap" in cfg.diagnostics or default in existing:
        return [plan.overlap(plan.weak_labels(), default)]
    return [plan.overlap(plan.weak_labels(), node) for node in existing[:1]]


def _is_features_of_texts(node: Node) -> bool:
    """Return whether a node has hidden states of the transfer texts alone, before any training."""
    settings = dict(node.settings)
    return (
        node.stage == "features"
        and not node.needs
        and settings["split"] == "transfer"
        and settings["word"] is None
    )


def recorded(cfg: RunConfig, node: Node) -> Node:
    """Return a node in which every student records its fit, if the run asks for it.

    Intermediate students record too, so that they stay one job with an equal student of the run.
    """
    if "fit" not in cfg.diagnostics:
        return node
    settings = dict(node.settings)
    if node.stage == "student" and not settings.get("record"):
        settings["fit"] = FIT_EVALUATIONS
    needs = tuple((name, recorded(cfg, n)) for name, n in node.needs)
    return replace(node, settings=tuple(sorted(settings.items())), needs=needs)
