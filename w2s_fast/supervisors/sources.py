"""The sources of votes that a run's configuration names."""

from __future__ import annotations

from dataclasses import dataclass

from w2s_fast.errors import W2SError, nearest
from w2s_fast.specs import settings, split


@dataclass(frozen=True)
class Source:
    """Where one or more columns of votes come from."""


@dataclass(frozen=True)
class VoteColumn(Source):
    """Votes in the data: the column ``task.votes``."""


@dataclass(frozen=True)
class Functions(Source):
    """Labelling functions of the user.

    Attributes:
        path: As ``labeling.load_functions`` takes it: "FILE.py", "package.module", and either with
            ":NAME".
    """

    path: str


@dataclass(frozen=True)
class WeakModel(Source):
    """A weak model, trained on the true labels of the weak split; it votes for its top class.

    Attributes:
        member: Number of the weak model, which sets initial weights and data order.
        threshold: It abstains where its top probability is lower.
    """

    member: int = 0
    threshold: float = 0.0


@dataclass(frozen=True)
class LabelWords(Source):
    """The untrained student's probabilities of the class words.

    Attributes:
        threshold: It abstains where the top probability, calibrated for the prior of the words, is
            lower.
    """

    threshold: float = 0.7


@dataclass(frozen=True)
class Generated(Source):
    """Labelling functions that are learned from the weak split.

    Attributes:
        generator: Spec of ``labeling.make_generator``.
    """

    generator: str


_PLAIN: dict[str, type[Source]] = {
    "votes": VoteColumn,
    "weak": WeakModel,
    "label_words": LabelWords,
}


def parse_source(spec: str) -> Source:
    """Return the source that a spec names.

    Raises:
        W2SError: It names none, or a setting does not fit.
    """
    name, _, rest = spec.strip().partition(":")
    if name == "functions":
        if not rest:
            raise W2SError(
                f"supervisors.sources: {spec!r} names no functions; expected functions:FILE.py or "
                "functions:package.module"
            )
        return Functions(rest)
    if name in _PLAIN:
        return _plain(spec)
    from w2s_fast.labeling import GENERATORS, make_generator

    if name in GENERATORS:
        make_generator(spec)
        return Generated(spec)
    known = ("functions", *_PLAIN, *GENERATORS)
    raise W2SError(
        f"supervisors.sources: {spec!r} is unknown; expected one of {', '.join(known)}"
        f"{nearest(name, known)}"
    )


def _plain(spec: str) -> Source:
    name, rest = split(spec)
    source = _PLAIN[name](**settings(_PLAIN[name], rest, spec, "source"))
    threshold = getattr(source, "threshold", 0.0)
    if not 0 <= threshold <= 1:
        raise W2SError(f"source {spec!r}: threshold is {threshold}; expected a probability")
    if getattr(source, "member", 0) < 0:
        raise W2SError(f"source {spec!r}: member must be 0 or more")
    return source
