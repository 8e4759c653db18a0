"""Stage II of weak-to-strong reasoning: pairs of a right and a wrong solution, without true labels.

Of k samples of the model of stage I, a+ is the majority answer and c its share. For a weak solution
w with answer a(w):

    c < 0.6               no pair
    a(w) = a+             (chosen, rejected) = (w, a sample with another answer than a+)
    a(w) != a+, c >= 0.8  (chosen, rejected) = (a sample with a+, w)

so one side is always the weak solution. The pairs are for DPO or ORPO, in
`w2s_fast.losses.preference`.

Source: Yang, Ma and Liu 2024 (arXiv 2407.13647), section 3.3; thresholds and choices of their
released code, which draws samples at random.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from random import Random

from w2s_fast.errors import W2SError
from w2s_fast.reasoning.equality import Verdict, check_rule, compare_answers, is_readable
from w2s_fast.reasoning.reading import Reader, get_reader
from w2s_fast.reasoning.rows import Row, check_columns, pair_row
from w2s_fast.reasoning.votes import Vote, vote

OUTCOMES = (
    "weak_chosen",
    "weak_rejected",
    "no_answer",
    "low_confidence",
    "below_override",
    "unanimous",
    "equal_sides",
    "weak_empty",
    "undecided",
)


@dataclass(frozen=True)
class PairReport:
    """What became of every item; each is in exactly one of the first nine tuples of ids.

    Attributes:
        weak_chosen: The weak solution is the chosen side.
        weak_rejected: It is the rejected side.
        no_answer: No sample has a readable answer.
        low_confidence: The majority is below the threshold of all pairs.
        below_override: The weak answer differs from a majority that is too small to overrule it.
        unanimous: The weak solution agrees with the majority, and no sample differs from it.
        equal_sides: Every sample for the other side has the weak answer too, by a rule that is not
            transitive.
        weak_empty: The weak solution is blank, so it can be no side.
        undecided: Whether the weak answer equals the majority's could not be decided.
        unreadable_rejected: Pairs whose rejected side has no readable answer; these are among
            ``weak_chosen`` and ``weak_rejected``.
        n_unreadable_samples: Samples of all items without a readable answer.
    """

    weak_chosen: tuple[Hashable, ...]
    weak_rejected: tuple[Hashable, ...]
    no_answer: tuple[Hashable, ...]
    low_confidence: tuple[Hashable, ...]
    below_override: tuple[Hashable, ...]
    unanimous: tuple[Hashable, ...]
    equal_sides: tuple[Hashable, ...]
    weak_empty: tuple[Hashable, ...]
    undecided: tuple[Hashable, ...]
    unreadable_rejected: tuple[Hashable, ...]
    n_unreadable_samples: int

    def __str__(self) -> str:
        counts = {name: len(getattr(self, name)) for name in OUTCOMES}
        return (
            f"{sum(counts.values())} items: "
            + ", ".join(f"{n} {name}" for name, n in counts.items())
            + f"; {len(self.unreadable_rejected)} rejected sides and {self.n_unreadable_samples} "
            "samples without a readable answer"
        )


@dataclass(frozen=True)
class ContrastivePairs:
    """The pairs of stage II.

    Attributes:
        rows: Rows of id, prompt, chosen and rejected in the order of the items.
        report: What became of every item.
    """

    rows: tuple[Row, ...]
    report: PairReport


def contrastive_pairs(
    ids: Sequence[Hashable],
    prompts: Sequence[str],
    weak: Sequence[str],
    samples: Sequence[Sequence[str]],
    *,
    seed: int = 0,
    confidence: float = 0.6,
    override_confidence: float = 0.8,
    read: str | Reader = "marked",
    rule: str = "math",
) -> ContrastivePairs:
    """Build at most one pair an item from a weak solution and samples of the strong model.

    Args:
        ids: N different ids; a pair is a function of its item, its id and ``seed``.
        prompts: N prompts.
        weak: N solutions of the weak model.
        samples: N lists of samples, in the paper ten at temperature 1.
        seed: Seed of the choice among samples.
        confidence: Smallest confidence of a majority that is used.
        override_confidence: Smallest confidence of a majority that overrules the weak answer.
        read, rule: As in `select_agreeing`.

    Raises:
        W2SError: Columns differ in length, an id occurs twice, an item has no samples, a confidence
            is not in (0, 1] or they are in the wrong order, or reader or rule is unknown.
    """
    check_columns(ids, prompts=prompts, weak=weak)
    _check_samples(ids, samples)
    if not 0 < confidence <= override_confidence <= 1:
        raise W2SError(
            f"confidence is {confidence}, override_confidence {override_confidence}; expected "
            "0 < confidence <= override_confidence <= 1"
        )
    check_rule(rule)
    reader = get_reader(read)
    outcomes: dict[str, list[Hashable]] = {name: [] for name in OUTCOMES}
    rows, unreadable_rejected, n_unreadable = [], [], 0
    for item_id, prompt, text, texts in zip(ids, prompts, weak, samples, strict=True):
        ballot = vote(texts, read=reader, rule=rule)
        n_unreadable += len(ballot.unreadable)
        outcome = _outcome(text, ballot, reader, rule, confidence, override_confidence)
        if outcome in ("weak_chosen", "weak_rejected"):
            others = ballot.disagreeing if outcome == "weak_chosen" else ballot.agreeing
            texts = [texts[i] for i in others if not _equal(text, texts[i], reader, rule)]
            outcome = outcome if texts else "equal_sides"
        outcomes[outcome].append(item_id)
        if outcome not in ("weak_chosen", "weak_rejected"):
            continue
        sample = Random(f"{seed}/{item_id!r}").choice(texts)
        chosen, rejected = (text, sample) if outcome == "weak_chosen" else (sample, text)
        rows.append(pair_row(item_id, prompt, chosen, rejected))
        if not is_readable(reader(rejected), rule):
            unreadable_rejected.append(item_id)
    report = PairReport(
        **{name: tuple(items) for name, items in outcomes.items()},
        unreadable_rejected=tuple(unreadable_rejected),
        n_unreadable_samples=n_unreadable,
    )
    return ContrastivePairs(tuple(rows), report)


def _outcome(
    weak: str, ballot: Vote, read: Reader, rule: str, confidence: float, override: float
) -> str:
    """Return what becomes of an item, before the sample of its other side is drawn."""
    if not weak.strip():
        return "weak_empty"
    if not ballot.agreeing:
        return "no_answer"
    if ballot.confidence < confidence:
        return "low_confidence"
    verdict = compare_answers(read(weak), ballot.answer, rule)
    if verdict is Verdict.UNDECIDED:
        return "undecided"
    if verdict is Verdict.EQUAL:
        return "weak_chosen" if ballot.disagreeing else "unanimous"
    return "weak_rejected" if ballot.confidence >= override else "below_override"


def _equal(one: str, other: str, read: Reader, rule: str) -> bool:
    return compare_answers(read(one), read(other), rule) is Verdict.EQUAL


def _check_samples(ids: Sequence[Hashable], samples: Sequence[Sequence[str]]) -> None:
    if len(samples) != len(ids):
        raise W2SError(f"samples: {len(samples)} lists for {len(ids)} ids; expected a list per id")
    for item_id, texts in zip(ids, samples, strict=True):
        if isinstance(texts, str) or not len(texts) or not all(isinstance(t, str) for t in texts):
            raise W2SError(
                f"samples of id {item_id!r} are {texts!r}; expected a list of at least one text"
            )
