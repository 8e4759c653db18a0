"""What has to be computed for a student, written down before anything is.

A ``Node`` is one thing to compute and what goes into it; a ``Plan`` hands nodes out. Equal nodes
are computed once, whichever methods asked for them. No node leads from the true labels of the
transfer set to a student: what a method may ask of them (a class balance, a stopping point) has a
name of its own, is kept with the node, and is shown in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Settings = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Node:
    """One thing to compute.

    Attributes:
        stage: What kind of work it is, a key of ``pipeline.jobs.VERSIONS``.
        settings: Plain values, sorted by name.
        needs: Other nodes by the name of what they are here.
        gold: Uses of true labels of the transfer set, in words; empty for almost all.
    """

    stage: str
    settings: Settings = ()
    needs: tuple[tuple[str, Node], ...] = ()
    gold: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Hands out the nodes of one student.

    Attributes:
        loss: Canonical spec of the loss of the student and of every intermediate student.
        intermediate_models: Number of ``RunConfig.intermediate_models``.
        writer: Role of the model that writes transcripts, None where an endpoint does.
        body: How the student's model is made, for every student on the way and for the ceiling:
            ``freeze`` and ``start`` of ``Method.training``.
    """

    loss: str = "xent"
    intermediate_models: int = 0
    writer: str | None = "student"
    body: tuple[tuple[str, Any], ...] = ()

    def weak_model(
        self, member: int = 0, context: Node | None = None, fold: int | None = None
    ) -> Node:
        """The supervisor trained on true labels of its own half; others begin differently.

        Args:
            member: Which of several; 0 is the floor.
            context: ``transcripts`` of the split "weak" that it reads after each text.
            fold: 0 or 1: this half of its half is left out of the training.
        """
        settings = {"role": "weak", "member": member}
        if fold is not None:
            settings["fold"] = fold
        return _node("weak", settings, _given(context=context))

    def weak_labels(self, member: int = 0, split: str = "transfer") -> Node:
        """Class probabilities of the supervisor for every text of a split."""
        return self.labels(self.weak_model(member), split)

    def labels(self, model: Node, split: str = "transfer", context: Node | None = None) -> Node:
        """Class probabilities of a trained model for every text of a split.

        ``context``: ``transcripts`` of the same split that it reads after each text.
        """
        known, start = dict(model.settings), dict(model.needs).get("start")
        settings = {"role": known["role"], "split": split}
        needs = {"model": model, **_given(start=start, context=context)}
        if known.get("freeze"):
            settings["freeze"] = True
            needs[split] = self.features(split, "last", start=start)
        return _node("labels", settings, needs)

    def transcripts(
        self, protocol: str, split: str = "transfer", member: int = 0, judged: bool = False
    ) -> Node:
        """What a protocol says of every text of a split, written without any label.

        Args:
            protocol: A spec of ``debate.PROTOCOLS``.
            split: Of which texts.
            member: Which of several samples.
            judged: Whether the protocol asks what the supervisor thinks. Of its own half it is
                told by two, each of texts that it did not learn: one that had learned a text
                would give away its true label.
        """
        settings = {"role": self.writer, "protocol": protocol, "split": split, "member": member}
        needs: dict[str, Node] = {}
        if judged and split == "weak":
            needs = {f"fold{i}": self.labels(self.weak_model(fold=i), split) for i in (0, 1)}
        elif judged:
            needs = {"weak": self.weak_labels(split=split)}
        return _node("transcripts", settings, needs)

    def intermediate(self, position: int, labels: Node) -> Node:
        """Model ``position`` of the chain, trained on these labels."""
        settings = {"role": f"intermediate/{position}", "loss": self.loss}
        return _node("intermediate", settings, {"labels": labels})

    def student(self, labels: Node, **training: Any) -> Node:
        """The student trained on these labels.

        Args:
            labels: Class probabilities, or what ``apply`` gives.
            training: What differs from a plain training, see ``Method.training``.
        """
        return self._strong("student", {"labels": labels}, {"loss": self.loss, **training})

    def ceiling(self, **training: Any) -> Node:
        """The student's model trained on true labels."""
        return self._strong("ceiling", {}, training)

    def control(self, labels: Node) -> Node:
        """The student's model without pretraining, trained on these labels."""
        return self._strong("control", {"labels": labels}, {"loss": self.loss})

    def tuned(self) -> Node:
        """The student's language model after it read the transfer texts, without any label."""
        return _node("tuned", {"role": "student"})

    def features(
        self,
        split: str = "transfer",
        layer: str = "half",
        word: int | None = None,
        start: Node | None = None,
    ) -> Node:
        """Hidden states (N, D) of the untrained student at the label position.

        Args:
            split: Of which texts.
            layer: "half", "last", or a number counted from 0, the embeddings.
            word: Read each text followed by the word of this class instead of the text alone.
            start: A model to read with instead of the pretrained one, see ``Method.training``.
        """
        settings = {"role": "student", "split": split, "layer": layer, "word": word}
        return _node("features", settings, {} if start is None else {"start": start})

    def prior(self, split: str = "transfer") -> Node:
        """What the untrained student itself answers: probabilities of the words of the classes."""
        return _node("prior", {"role": "student", "split": split})

    def gold_balance(self) -> Node:
        """True share of every class (C,). It is a use of true labels and reported as one."""
        return _node("balance", {}, gold=("class balance of the transfer set",))

    def trajectory(self, model: Node) -> Node:
        """Class probabilities (K, N, C) of the transfer texts at K moments of a training.

        ``model`` is one of ``student(..., record=True)``.
        """
        return _node("trajectory", {}, {"model": model})

    def apply(self, function: Callable[..., Any], **inputs: Node) -> Node:
        """What a method's own function makes of finished results.

        Args:
            function: A bound method of a ``Method``. It is called in another process with arrays
                by the names given here and ``seed``; labels arrive as ``Targets``.
            inputs: Nodes.
        """
        settings = {"method": spec_of(function.__self__), "function": function.__name__}  # type: ignore[attr-defined]
        return _node("apply", settings, inputs)

    def _strong(self, stage: str, needs: Mapping[str, Node], training: Mapping[str, Any]) -> Node:
        training = {**dict(self.body), **training}
        nodes = {k: v for k, v in training.items() if isinstance(v, Node)}
        plain = {k: v for k, v in training.items() if not isinstance(v, Node)}
        gold = ("early stopping on true labels",) if plain.get("keep") == "gold" else ()
        if plain.get("freeze"):  # the body is read once for all heads
            for split in ("transfer", "test"):
                nodes[split] = self.features(split, "last", start=nodes.get("start"))
        return _node(stage, {"role": "student", **plain}, {**needs, **nodes}, gold)


def spec_of(thing: Any) -> str:
    """The spec that builds an equal object: its place in the code and its fields."""
    from dataclasses import fields

    kind = type(thing)
    given = ",".join(f"{f.name}={getattr(thing, f.name)}" for f in fields(thing))
    return f"{kind.__module__}:{kind.__qualname__}" + (f":{given}" if given else "")


def _given(**needs: Node | None) -> dict[str, Node]:
    return {name: node for name, node in needs.items() if node is not None}


def _node(
    stage: str,
    settings: Mapping[str, Any],
    needs: Mapping[str, Node] | None = None,
    gold: tuple[str, ...] = (),
) -> Node:
    return Node(stage, tuple(sorted(settings.items())), tuple((needs or {}).items()), gold)
