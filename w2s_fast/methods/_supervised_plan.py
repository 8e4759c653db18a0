"""The plan of a student whose weak labels are the posterior of a label model over many supervisors.

A node ``votes`` has the votes of one source for the texts of one split; ``generated_votes`` those
of functions learned from the weak split. A node ``posterior`` fits the label model to the votes of
the transfer split and labels one split with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from w2s_fast.errors import W2SError
from w2s_fast.methods._node import Node, make_node, without_none
from w2s_fast.methods._plan import Plan
from w2s_fast.supervisors import (
    Generated,
    LabelWords,
    Source,
    SupervisorsConfig,
    WeakModel,
    parse_source,
)


@dataclass(frozen=True)
class SupervisedPlan(Plan):
    """Creates the nodes of one student of a run with ``supervisors.sources``.

    Attributes:
        supervisors: The block of that name.
    """

    supervisors: SupervisorsConfig = field(default_factory=SupervisorsConfig)

    def weak_model(
        self,
        member: int = 0,
        context: Node | None = None,
        fold: int | None = None,
        folds: int = 2,
    ) -> NoReturn:
        """Raise, because the labels of a supervised run are not those of one weak model.

        Raises:
            W2SError: Always.
        """
        raise W2SError(
            "the method trains weak models of its own, and supervisors.sources "
            f"{list(self.supervisors.sources)} give the weak labels of this run; drop the method, "
            "or name weak models as sources: weak, weak:member=1"
        )

    def weak_labels(self, member: int = 0, split: str = "transfer") -> Node:
        """Return the label model's posterior for every text of a split, calibrated if the run
        calibrates weak labels.

        Raises:
            W2SError: ``member`` is not 0.
        """
        if member:
            self.weak_model(member)
        calibrator = None if self.calibration == "none" else self.calibrator()
        return self._posterior(split, calibrator)

    def out_of_fold(self, member: int = 0) -> dict[str, Node]:
        """Return the cross-fitted posteriors of the weak split, as inputs of a stage.

        For ``fold{i}``, sources that learn from true labels learned without fold i. They are one
        node if no source does.
        """
        learned = [s for s in self._sources() if isinstance(s, WeakModel | Generated)]
        if self.supervisors.gate and learned:
            raise W2SError(
                "supervisors.gate=true: labels of the weak split cannot be left out where they "
                f"select sources that learn from them too, such as {learned[0]}; set "
                "supervisors.gate=false, or drop weak_calibration and methods of trust"
            )
        return {f"fold{i}": self._posterior("weak", fold=i) for i in range(self.folds)}

    def _sources(self) -> list[Source]:
        return [parse_source(spec) for spec in self.supervisors.sources]

    def _posterior(
        self, split: str, calibrator: Node | None = None, fold: int | None = None
    ) -> Node:
        block, fitted = self.supervisors, "transfer"
        settings: dict[str, Any] = {
            "split": split,
            "label_model": block.label_model,
            "class_balance": block.class_balance,
        }
        if split == fitted:
            settings["row_weight"] = block.row_weight
        needs = {
            f"{s}{i}": self._votes(source, s, fold)
            for s in dict.fromkeys((fitted, split))
            for i, source in enumerate(self._sources())
        }
        gate = self._gate(fold) if block.gate else None
        further = without_none(calibrator=calibrator, gate=gate)
        return make_node("posterior", settings, {**needs, **further})

    def _gate(self, fold: int | None) -> Node:
        """Return the gate over sources, fitted to cross-fitted votes for the weak split.

        Input ``fold{i}_{j}`` has the votes of source j that learned without fold i.

        Raises:
            W2SError: A source has other functions in every fold.
        """
        sources = self._sources()
        if any(isinstance(source, Generated) for source in sources):
            raise W2SError(
                f"supervisors.gate=true: {list(self.supervisors.sources)} has functions learned "
                "from the weak split, which differ from fold to fold and are selected by their "
                "generator already; set supervisors.gate=false"
            )
        needs = {
            f"fold{i}_{j}": self._votes(source, "weak", i)
            for i in range(self.folds)
            for j, source in enumerate(sources)
        }
        settings = {"folds": self.folds} | ({} if fold is None else {"fold": fold})
        return make_node("gate", settings, needs)

    def _votes(self, source: Source, split: str, fold: int | None) -> Node:
        """Return the votes of a source that learned without a fold, if one is given."""
        settings = {"source": type(source).__name__, "split": split}
        settings |= {f.name: getattr(source, f.name) for f in fields(source)}
        if isinstance(source, Generated):
            return self._generated(settings, split, fold)
        needs: dict[str, Node] = {}
        if isinstance(source, LabelWords):
            needs = {"labels": self.prior(split)}
        elif isinstance(source, WeakModel):
            alone = Plan(referenced=self.referenced)
            model = alone.weak_model(source.member, fold=fold, folds=self.folds)
            needs = {"labels": alone.labels(model, split)}
        return make_node("votes", settings, needs)

    def _generated(self, settings: dict[str, Any], split: str, fold: int | None) -> Node:
        layer = self.supervisors.layer
        if fold is not None:
            settings |= {"fold": fold, "folds": self.folds}
        needs = {s: self.features(s, layer) for s in dict.fromkeys(("weak", split))}
        return make_node("generated_votes", settings, needs)
