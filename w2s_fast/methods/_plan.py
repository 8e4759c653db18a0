"""The plan of a student: a graph of what has to be computed, built before anything is computed.

A ``Plan`` creates nodes. Equal nodes are computed once, whichever methods use them. ``check_gold``
refuses a plan in which true labels reach a student other than through the weak model's labels;
further uses are those of ``Node.gold`` and ``Node.weak_gold``, which the report names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.methods._label_columns import columns_of
from w2s_fast.methods._node import (
    Node,
    make_node,
    spec_of,
    trained_inputs,
    with_needs,
    without_none,
)


@dataclass(frozen=True)
class Plan:
    """Creates the nodes of one student.

    Attributes:
        loss: Canonical spec of the loss of the student and of every intermediate student.
        intermediate_models: Number of ``RunConfig.intermediate_models``.
        writer: Role of the model that writes transcripts; None if an endpoint writes them.
        critic: Role of the model that writes critiques; None if an endpoint writes them.
        model_settings: ``freeze`` and ``start`` of ``Method.training``, for the student, every
            intermediate student and the ceiling.
        calibration: Key of ``metrics.CALIBRATORS`` for the labels of weak models, or "none".
        folds: Parts of the weak split that calibrators are cross-fitted on.
        referenced: Roles of policies whose reward compares with their untrained model.
        targeted: Whether the student is a policy that learns the log-ratio of the weak model, see
            ``losses.preference.WSPO``.
    """

    loss: str = "xent"
    intermediate_models: int = 0
    writer: str | None = "student"
    critic: str | None = "weak"
    model_settings: tuple[tuple[str, Any], ...] = ()
    calibration: str = "none"
    folds: int = 5
    referenced: tuple[str, ...] = ()
    targeted: bool = False

    def weak_model(
        self,
        member: int = 0,
        context: Node | None = None,
        fold: int | None = None,
        folds: int = 2,
    ) -> Node:
        """Return the weak model, trained on the true labels of the weak split.

        Args:
            member: Member of an ensemble, which sets initial weights and data order; 0 is the
                floor.
            context: ``transcripts`` of the weak split, appended to each text.
            fold: Part of the weak split that is left out of the training.
            folds: Number of parts.
        """
        settings = {"role": "weak", "member": member}
        if fold is not None:
            settings |= {"fold": fold} if folds == 2 else {"fold": fold, "folds": folds}
        needs = without_none(context=context)
        return make_node("weak", settings, needs | self._references("weak", "weak", member=member))

    def weak_labels(self, member: int = 0, split: str = "transfer") -> Node:
        """Return the weak model's class probabilities for every text of a split, calibrated if
        the run calibrates weak labels."""
        calibrator = None if self.calibration == "none" else self.calibrator(member)
        return self.labels(self.weak_model(member), split, calibrator=calibrator)

    def calibrator(self, member: int = 0) -> Node:
        """Return the calibrator of a weak model, fitted to cross-fitted predictions of its split.

        Without a rule in ``calibration`` it is a temperature.
        """
        rule = "temperature" if self.calibration == "none" else self.calibration
        return make_node("calibration", {"rule": rule}, self.out_of_fold(member))

    def out_of_fold(self, member: int = 0) -> dict[str, Node]:
        """Return the cross-fitted predictions of a weak model, as inputs of a stage.

        Input ``fold{i}`` are the labels of the weak split by the model trained without fold i; a
        stage takes each row from the model that was trained without its fold.
        """
        return {
            f"fold{i}": self.labels(self.weak_model(member, fold=i, folds=self.folds), "weak")
            for i in range(self.folds)
        }

    def labels(
        self,
        model: Node,
        split: str = "transfer",
        context: Node | None = None,
        calibrator: Node | None = None,
    ) -> Node:
        """Return a trained model's class probabilities for every text of a split.

        Args:
            model: Node of the model.
            split: Split of the texts.
            context: ``transcripts`` of the same split, appended to each text.
            calibrator: Calibrator that the probabilities go through.
        """
        known, start = dict(model.settings), dict(model.needs).get("start")
        settings = {"role": known["role"], "split": split}
        needs = {
            "model": model,
            **without_none(start=start, context=context, calibrator=calibrator),
        }
        if known.get("low_rank"):
            settings["low_rank"] = known["low_rank"]
        if known.get("freeze"):
            settings["freeze"] = True
            needs[split] = self.features(split, "last", start=start)
        member = known.get("member", 0)
        references = self._references(known["role"], split, start=start, member=member, test=False)
        return make_node("labels", settings, needs | references)

    def transcripts(
        self, protocol: str, split: str = "transfer", member: int = 0, judged: bool = False
    ) -> Node:
        """Return one transcript per text of a split, written without any label.

        Args:
            protocol: Spec of ``debate.PROTOCOLS``.
            split: Split of the texts.
            member: Number of the sample.
            judged: Whether the protocol shows the weak model's predictions. On the weak split,
                predictions are two-fold cross-fitted to avoid label leakage.
        """
        settings = {"role": self.writer, "protocol": protocol, "split": split, "member": member}
        needs: dict[str, Node] = {}
        if judged and split == "weak":
            needs = {f"fold{i}": self.labels(self.weak_model(fold=i), split) for i in (0, 1)}
        elif judged:
            needs = {"weak": self.weak_labels(split=split)}
        return make_node("transcripts", settings, needs)

    def critiques(self, split: str = "transfer", member: int = 0) -> Node:
        """Return the untrained student's reasons for its zero-shot answer, and a critique of them,
        for every text of a split, written without any label.

        Args:
            split: Split of the texts.
            member: Number of the sample.
        """
        settings = {"split": split, "member": member}
        answer = {"role": self.writer, "protocol": "answer", **settings}
        reasons = make_node("transcripts", answer, {"weak": self.prior(split)})
        critique = {"role": self.critic, "protocol": "critique", **settings}
        return make_node("transcripts", critique, {"before": reasons})

    def intermediate(self, position: int, labels: Node) -> Node:
        """Return intermediate model ``position``, trained on these labels."""
        settings = {"role": f"intermediate/{position}", "loss": self.loss}
        references = self._references(settings["role"], "transfer")
        return make_node("intermediate", settings, {"labels": labels, **references})

    def student(self, labels: Node, initial: Node | None = None, **training: Any) -> Node:
        """Return the student trained on these labels.

        Args:
            labels: Node of ``labels``, ``prior``, ``apply`` or ``apply_texts``.
            initial: Trained student whose weights it continues from; None: the pretrained weights.
                It is the reference of a preference loss.
            training: Settings of ``Method.training``.

        Raises:
            W2SError: Labels are pairs and the loss is no preference loss, or the reverse; pairs
                have ``stages``; or ``initial`` is a model of another role.
        """
        if initial is not None and (role := dict(initial.settings).get("role")) != "student":
            raise W2SError(
                f"the student continues from a model of role {role!r}, whose weights do not fit "
                "it; use plan.student(...)"
            )
        training = {"loss": self.loss, **training}
        needs = {"labels": labels, **without_none(initial=initial)}
        columns = columns_of(bool(dict(labels.settings).get("pairs")), training)
        start = None if initial else training.get("start", dict(self.model_settings).get("start"))
        if "reference" in columns:
            needs["reference"] = with_needs(self.pair_logprob(labels, initial), start=start)
        if "target" in columns:
            needs["weak_policy"] = self.pair_logprob(labels, self.weak_model())
            needs["weak_reference"] = self.pair_logprob(labels, role="weak")
        if training.get("stages"):
            needs["perplexity"] = with_needs(self.perplexity(labels, initial), start=start)
        return self._strong("student", needs, training)

    def pair_logprob(self, labels: Node, model: Node | None = None, role: str = "student") -> Node:
        """Return the summed log-probabilities (R, 2) of pairs of completions under a model.

        Args:
            labels: Node of ``apply_texts(..., pairs=True)``.
            model: Trained model; None: the untrained model of ``role``.
            role: Role of the model; that of ``model`` if it is given.
        """
        if model is not None:
            role = dict(model.settings)["role"]
        return make_node(
            "pair_logprob", {"role": role}, {"labels": labels, **trained_inputs(model)}
        )

    def perplexity(self, labels: Node, model: Node | None = None) -> Node:
        """Return the perplexities (R,) of completions under a student.

        Args:
            labels: Node of completions.
            model: Trained student; None: the untrained one.
        """
        return make_node(
            "perplexity", {"role": "student"}, {"labels": labels, **trained_inputs(model)}
        )

    def samples(
        self,
        model: Node | None = None,
        *,
        split: str = "transfer",
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        shots: int = 0,
        member: int = 0,
        role: str = "student",
        contrast: float = 0.0,
        plausible: float = 0.1,
    ) -> Node:
        """Return n completions of each prompt of a split.

        Args:
            model: Trained model; None: that of ``role`` before its training.
            split: Split of the prompts.
            n: Completions a prompt.
            temperature: 0: the most likely token each time.
            top_p: Draw from the most likely tokens that have this probability together.
            shots: Prompts of the weak split with their true answers that precede each prompt;
                reports list this use.
            member: Number of the draw; another one has other samples and examples.
            role: Role of the untrained model.
            contrast: a in (1 + a) z - a z_0, the logits that tokens are drawn from: z of the model,
                z_0 of the same model before its training; 0: z.
            plausible: With a contrast, tokens less likely under z than this share of the most
                likely one are not drawn.
        """
        settings = {
            "role": role if model is None else dict(model.settings)["role"], "split": split,
            "n": n, "temperature": float(temperature), "top_p": float(top_p), "shots": shots,
            "member": member,
        }  # fmt: skip
        if contrast:
            settings |= {"contrast": float(contrast), "plausible": float(plausible)}
        return make_node("samples", settings, trained_inputs(model))

    def ceiling(self, **training: Any) -> Node:
        """Return the student's model trained on true labels."""
        return self._strong("ceiling", {}, training)

    def control(self, labels: Node) -> Node:
        """Return the student's model without pretraining, trained on these labels."""
        return self._strong("control", {"labels": labels}, {"loss": self.loss})

    def tuned(self) -> Node:
        """Return the student's language model fine-tuned on the transfer texts, without labels."""
        return make_node("tuned", {"role": "student"})

    def compressed(self, **settings: Any) -> Node:
        """Return the student's backbone at a low rank, distilled from the full one's states.

        Args:
            settings: ``share``, ``bound`` and ``strength`` of ``methods.low_rank``.
        """
        needs = {"transfer": self.features("transfer", "last")}
        return make_node("compressed", {"role": "student", **settings}, needs)

    def backbone(self, student: Node) -> Node:
        """Return the backbone of a trained student, to ``start`` from; its head is dropped."""
        kept = {k: v for k, v in student.settings if k in ("role", "projection", "low_rank")}
        return make_node("backbone", kept, trained_inputs(student))

    def features(
        self,
        split: str = "transfer",
        layer: str = "half",
        word: int | None = None,
        start: Node | None = None,
    ) -> Node:
        """Return the hidden states (N, D) of the untrained student at the label position.

        Args:
            split: Split of the texts.
            layer: "half", "last", or a number; 0 is the embeddings.
            word: Class whose word is appended to each text; None: the text alone.
            start: Model that replaces the pretrained one, see ``Method.training``.
        """
        settings = {"role": "student", "split": split, "layer": layer, "word": word}
        return make_node("features", settings, {} if start is None else {"start": start})

    def prior(self, split: str = "transfer", context: Node | None = None) -> Node:
        """Return the untrained student's probabilities of the class words.

        Args:
            split: Split of the texts.
            context: ``transcripts`` of the same split, appended to each text.
        """
        needs = without_none(context=context)
        return make_node("prior", {"role": "student", "split": split}, needs)

    def overlap(self, labels: Node, features: Node) -> Node:
        """Return the overlap density of the transfer split."""
        return make_node("overlap", {}, {"labels": labels, "features": features})

    def gold_balance(self) -> Node:
        """Return the true share of every class (C,); reports list it as a use of true labels."""
        return make_node("balance", {})

    def trust(
        self,
        labels: Node,
        *,
        own: Node | None = None,
        calibrate: str = "none",
        layer: str = "half",
        l2: float = 0.01,
        folds: int = 5,
    ) -> Node:
        """Return P(label right) (N,) of labels of the transfer set.

        It is fitted to the weak split, whose true labels say which predictions there are right;
        reports list this use.

        Args:
            labels: Labels of the transfer set that are to be trusted.
            own: Labels of the weak split by a model that has learned no true labels, like
                ``prior("weak")``, if ``labels`` are of such a model; None: cross-fitted predictions
                of the weak model.
            calibrate: For ``own``: "weak" shifts its probabilities to the true class balance of the
                weak split, see ``Elicit``.
            layer: Layer of the hidden states of the untrained student, see ``features``.
            l2, folds: See ``w2s_fast.trust.fit_trust``.
        """
        settings: dict[str, Any] = {"l2": l2, "folds": folds}
        needs = {
            "labels": labels,
            "features": self.features(layer=layer),
            "weak_features": self.features("weak", layer),
        }
        if own is not None:
            return make_node("trust", {**settings, "calibrate": calibrate}, {**needs, "own": own})
        if self.calibration != "none":
            needs["calibrator"] = self.calibrator()
        return make_node("trust", settings, {**needs, **self.out_of_fold()})

    def trajectory(self, model: Node) -> Node:
        """Return the class probabilities (K, N, C) of the transfer texts at K steps of a training.

        ``model`` is a node of ``student(..., record=True)``.
        """
        return make_node("trajectory", {}, {"model": model})

    def apply(self, function: Callable[..., Any], **inputs: Node) -> Node:
        """Return the labels that a method's function computes from finished results.

        Args:
            function: Bound method of a ``Method``. It is called, possibly in another process, with
                an array per input and ``seed``; labels arrive as ``Targets``.
            inputs: Nodes, by the name of the function's argument.
        """
        settings = {"method": spec_of(function.__self__), "function": function.__name__}  # type: ignore[attr-defined]
        return make_node("apply", settings, inputs)

    def apply_texts(
        self, function: Callable[..., Any], *, pairs: bool = False, **inputs: Node
    ) -> Node:
        """Return the completions, or pairs of them, that a method's function makes of texts.

        Args:
            function: Bound method of a ``Method``. It is called, possibly in another process, with
                ``prompts`` (``Prompts``), ``seed``, and a list of N lists of texts per input; it
                returns ``TextLabels`` or ``PairLabels``.
            pairs: Whether it returns pairs, which a preference loss learns.
            inputs: Nodes of ``labels`` or ``samples`` of the transfer set, by the name of the
                function's argument.
        """
        settings = {"method": spec_of(function.__self__), "function": function.__name__}  # type: ignore[attr-defined]
        return make_node("text_labels", {**settings, "pairs": pairs}, inputs)

    def _strong(self, stage: str, needs: Mapping[str, Node], training: Mapping[str, Any]) -> Node:
        training = {**dict(self.model_settings), **training}
        nodes = {k: v for k, v in training.items() if isinstance(v, Node)}
        plain = {k: v for k, v in training.items() if not isinstance(v, Node)}
        more = ("conflict",) if "conflict_rows" in plain else ()  # splits learned beside transfer
        if plain.get("freeze"):  # the backbone runs once for all heads
            for split in ("transfer", "test", *more):
                nodes[split] = self.features(split, "last", start=nodes.get("start"))
        references: dict[str, Node] = {}
        for split in ("transfer", *more):
            references |= self._references(
                "student", split, start=nodes.get("start"), control=stage == "control"
            )
            references |= self._targets(split)
        return make_node(stage, {"role": "student", **plain}, {**needs, **nodes, **references})

    def _targets(self, split: str) -> dict[str, Node]:
        """Return the log-probabilities of a split whose difference a policy learns by WSPO."""
        if not self.targeted:
            return {}
        settings = {"role": "weak", "split": split}
        policy = make_node("pair_logprob", settings, {"model": self.weak_model()})
        return {
            f"weak_policy_{split}": policy,
            f"weak_reference_{split}": make_node("reference", settings),
        }

    def _references(
        self,
        role: str,
        split: str,
        *,
        start: Node | None = None,
        member: int = 0,
        control: bool = False,
        test: bool = True,
    ) -> dict[str, Node]:
        """Return the reference log-probabilities that a policy needs, none for other models."""
        if role not in self.referenced:
            return {}
        settings: dict[str, Any] = {"role": role}
        settings |= {"member": member} if member else {}
        settings |= {"control": True} if control else {}
        splits = dict.fromkeys((split, "test") if test else (split,))
        needs = without_none(start=start)
        return {
            f"reference_{s}": make_node("reference", {**settings, "split": s}, needs)
            for s in splits
        }
