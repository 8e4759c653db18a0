"""Stage I of weak-to-strong reasoning: keep the items on which weak and strong model agree.

    kept = {i : a(w_i) = a(c_i)}
    D_weak = {(x_i, w_i)},  D_in_context = {(x_i, c_i)},  D_hybrid = D_weak + D_in_context, i kept

with x_i the prompt, w_i the weak model's solution, c_i the strong model's after a few worked
examples in the prompt, and a(.) the final answer. D_hybrid is a multiset: two rows an item. The
strong model is finetuned on each set; the generations of the students of D_weak and D_in_context
are the w and c of the next iteration.

Source: Yang, Ma and Liu 2024 (arXiv 2407.13647), section 3.2. No true label is used.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from w2s_fast.reasoning.equality import Verdict, check_rule, compare_answers
from w2s_fast.reasoning.reading import Reader, get_reader
from w2s_fast.reasoning.rows import Row, answer_row, check_columns
from w2s_fast.sampling import Sampler


@dataclass(frozen=True)
class AgreementReport:
    """What became of every item; each of the N items is in exactly one of the tuples of ids.

    Attributes:
        kept: Both answers are equal.
        different: Both answers can be read, and differ.
        empty: A solution is blank.
        unreadable: A solution is not blank but its answer, if any, cannot be read.
        undecided: The comparison failed or took too long.
    """

    kept: tuple[Hashable, ...]
    different: tuple[Hashable, ...]
    empty: tuple[Hashable, ...]
    unreadable: tuple[Hashable, ...]
    undecided: tuple[Hashable, ...]

    def __str__(self) -> str:
        counts = {name: len(ids) for name, ids in vars(self).items()}
        return f"{sum(counts.values())} items: " + ", ".join(f"{n} {k}" for k, n in counts.items())


@dataclass(frozen=True)
class AgreeingSets:
    """The sets of stage I, rows of id, prompt and answer in the order of the items.

    Attributes:
        weak: Rows with the weak model's solutions.
        in_context: Rows with the strong model's solutions.
        report: What became of every item.
    """

    weak: tuple[Row, ...]
    in_context: tuple[Row, ...]
    report: AgreementReport

    @property
    def hybrid(self) -> tuple[Row, ...]:
        """Both rows of every item, the weak model's first; equal rows are both there."""
        return tuple(row for both in zip(self.weak, self.in_context, strict=True) for row in both)


def select_agreeing(
    ids: Sequence[Hashable],
    prompts: Sequence[str],
    weak: Sequence[str],
    in_context: Sequence[str],
    *,
    read: str | Reader = "marked",
    rule: str = "math",
) -> AgreeingSets:
    """Select the items whose two solutions have equal answers.

    Args:
        ids: N different ids.
        prompts: N prompts.
        weak: N solutions of the weak model.
        in_context: N solutions of the strong model.
        read: Where a solution has its answer: "marked" (after "####"), "stated" ("The answer is:"),
            a reader of ``task.read``, or a function of the text that returns "" for no answer.
        rule: How answers are compared: "math", "number" or "string".

    Raises:
        W2SError: Columns differ in length, an id occurs twice, or reader or rule is unknown.
    """
    check_columns(ids, prompts=prompts, weak=weak, in_context=in_context)
    check_rule(rule)
    reader = get_reader(read)
    outcomes = [_outcome(a, b, reader, rule) for a, b in zip(weak, in_context, strict=True)]
    rows = [i for i, outcome in enumerate(outcomes) if outcome == "kept"]
    names = ("kept", "different", "empty", "unreadable", "undecided")
    groups = {n: tuple(ids[i] for i, o in enumerate(outcomes) if o == n) for n in names}
    return AgreeingSets(
        tuple(answer_row(ids[i], prompts[i], weak[i]) for i in rows),
        tuple(answer_row(ids[i], prompts[i], in_context[i]) for i in rows),
        AgreementReport(**groups),
    )


def next_iteration(
    ids: Sequence[Hashable],
    prompts: Sequence[str],
    weak_student: Sampler,
    in_context_student: Sampler,
    *,
    seed: int = 0,
    read: str | Reader = "marked",
    rule: str = "math",
) -> AgreeingSets:
    """Generate a solution of every prompt with both students, and select where they agree.

    Args:
        ids: N different ids; all items, not only those kept before.
        prompts: N prompts.
        weak_student: Sampler of the model finetuned on ``weak``; greedy in the paper.
        in_context_student: Sampler of the model finetuned on ``in_context``.
        seed: Seed of the samples.
        read, rule: As in `select_agreeing`.

    Raises:
        W2SError: As `select_agreeing`, and what the samplers raise.
    """
    check_columns(ids, prompts=prompts)
    check_rule(rule)
    reader = get_reader(read)
    weak, in_context = (
        [texts[0] for texts in student.sample(prompts, 1, seed=seed)]
        for student in (weak_student, in_context_student)
    )
    return select_agreeing(ids, prompts, weak, in_context, read=reader, rule=rule)


_OUTCOMES = {
    Verdict.EQUAL: "kept",
    Verdict.DIFFERENT: "different",
    Verdict.UNREADABLE: "unreadable",
    Verdict.UNDECIDED: "undecided",
}


def _outcome(weak: str, in_context: str, read: Reader, rule: str) -> str:
    if not weak.strip() or not in_context.strip():
        return "empty"
    return _OUTCOMES[compare_answers(read(weak), read(in_context), rule)]
