r"""Select labeling functions from a large pool by asking an expert about few of them.

    phi_j  = (1/|C_j|) sum_(i in C_j) (e(L_ij) - 1/K) (x) (x_i - mean x)      scaled to length 1
    u      ~ N(r + Phi w, s^2),  w ~ N(0, t^2)                        expert: 1 useful, 0 not
    next j = argmax of  z sigma_j - |mu_j - r|   (acquisition "level_set")
                    or  mu_j                     (acquisition "active_search")

C_j are the rows for which function j votes, e the one-hot vote, x_i features of a row, mu_j and
sigma_j the posterior mean and deviation of the usefulness of j, r the level from which a function
counts as useful. Functions for opposite classes on the same rows have opposite phi. "active_search"
asks about what is probably useful, and only functions that the expert accepted are selected;
"level_set" asks where it is unsure on which side of the level a function is, and functions with
mu_j - sigma_j > r are selected too. Each question is about a function that votes mostly for the
class with the fewest accepted functions, so that no class is left without.

Source: Boecking et al. 2021, "Interactive weak supervision" (arXiv 2012.06046): the level set with
the straddle rule of Bryan et al. 2005 (IWS-LSE), active search (IWS-AS), z = 1.96, r = 0.6. There
an ensemble of 50 networks models the usefulness, and questions do not alternate between classes;
here it is Bayesian linear regression, whose posterior is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models._options import check_choice, check_number
from w2s_fast.label_models.votes import check_votes
from w2s_fast.labeling.rows import check_features, check_labels

ACQUISITIONS = ("active_search", "level_set")
_Z = 1.96
_NOISE = 0.3  # s, deviation of an answer from the linear model
_SPREAD = 0.5  # t, prior deviation of the usefulness of a function


@dataclass(frozen=True)
class Selection:
    """Functions that are useful, by the expert's answers or by the model of these answers.

    Attributes:
        chosen: Positions of the functions, ascending.
        answers: Position -> answer, in the order of the questions; None is "I do not know".
        usefulness: (m,) float64 in [0, 1]: the answers, elsewhere the posterior mean.
    """

    chosen: tuple[int, ...]
    answers: dict[int, bool | None]
    usefulness: Tensor


def select_functions(
    votes: Any,
    n_classes: int,
    ask: Callable[[Any], bool | None],
    *,
    functions: Sequence[Any] | None = None,
    features: Any = None,
    n_questions: int = 50,
    max_functions: int | None = None,
    acquisition: str = "active_search",
    level: float = 0.6,
    seed: int = 0,
) -> Selection:
    """Ask an expert about functions of a pool, and select those that are probably useful.

    Functions that never vote are not asked about.

    Args:
        votes: (n, m) votes of the pool on rows that need no labels.
        n_classes: K.
        ask: Called with functions[j], or with j if there are no functions; returns True for a
            useful function, False for one that is not, None for "I do not know".
        functions: m functions, or texts that describe them.
        features: (n, D) features of the rows; None takes the votes' leading singular vectors.
        n_questions: Most questions.
        max_functions: Most functions selected: accepted ones first, then by mu_j - sigma_j times
            coverage, as in IWS-LSE-ac. None takes all.
        acquisition: Name in ``ACQUISITIONS``.
        level: r.
        seed: Seed of the first question.

    Raises:
        W2SError: An argument or an answer is wrong, or no function is useful.
    """
    matrix = check_votes(votes, n_classes)
    n, m = matrix.shape
    check_choice("acquisition", acquisition, ACQUISITIONS)
    check_number("n_questions", n_questions, 1)
    check_number("level", level, 0.0, 1.0)
    if functions is not None and len(functions) != m:
        raise W2SError(f"there are {len(functions)} functions for {m} columns of votes")
    x = check_features(_coincidences(matrix) if features is None else features)
    if len(x) != n:
        raise W2SError(f"features have {len(x)} rows and votes {n}; expected the same rows")
    phi = function_features(matrix, x, n_classes)
    coverage = (matrix >= 0).double().mean(0)
    open_ = coverage > 0
    answers: dict[int, bool | None] = {}
    polarity = _polarity(matrix, n_classes)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    for _ in range(min(n_questions, int(open_.sum()))):
        mean, deviation = usefulness(phi, answers, level)
        score = mean if acquisition == "active_search" else _Z * deviation - (mean - level).abs()
        eligible = open_ & (polarity == _class_to_ask_about(polarity, answers, open_))
        score = score.masked_fill(~eligible, -torch.inf)
        j = int(order[score[order].argmax()])  # ties in random order
        answers[j] = _answer(ask, j if functions is None else functions[j])
        open_[j] = False
    mean, deviation = usefulness(phi, answers, level)
    chosen = _select(mean - deviation, answers, coverage, level, acquisition, max_functions)
    return Selection(chosen, answers, mean)


def usefulness(phi: Tensor, answers: dict[int, bool | None], level: float) -> tuple[Tensor, Tensor]:
    """Return posterior mean, within [0, 1], and deviation of the usefulness of functions, (m,).

    Args:
        phi: (m, D) features of functions.
        answers: Position -> answer; None has no weight.
        level: Prior mean.
    """
    known = [(j, float(a)) for j, a in answers.items() if a is not None]
    if not known:
        return phi.new_full((len(phi),), level), _SPREAD * phi.norm(dim=1)
    index = torch.tensor([j for j, _ in known])
    given = torch.tensor([a for _, a in known], dtype=torch.float64)
    cross = _SPREAD**2 * phi @ phi[index].T
    kernel = cross[index] + _NOISE**2 * torch.eye(len(index), dtype=torch.float64)
    factor = torch.linalg.cholesky(kernel)
    mean = level + (cross @ torch.cholesky_solve((given - level)[:, None], factor))[:, 0]
    explained = torch.linalg.solve_triangular(factor, cross.T, upper=False).square().sum(0)
    variance = (_SPREAD**2 * phi.square().sum(1) - explained).clamp(min=0)
    mean[index] = given
    return mean.clamp(0, 1), variance.sqrt()


def function_features(votes: Tensor, x: Tensor, n_classes: int) -> Tensor:
    """Return features (m, K D) float64 of functions, of length 1, or 0 where none votes."""
    centered = x.double() - x.double().mean(0)
    count = (votes >= 0).sum(0).clamp(min=1)[:, None]
    total = (votes >= 0).double().T @ centered
    parts = [((votes == c).double().T @ centered - total / n_classes) / count
             for c in range(n_classes)]  # fmt: skip
    return torch.nn.functional.normalize(torch.cat(parts, 1), dim=1)


def accuracy_oracle(
    votes: Any, labels: Any, n_classes: int, *, min_accuracy: float = 0.7, min_votes: int = 3
) -> Callable[[int], bool | None]:
    """Return an expert made of labeled rows, to simulate one or to do without.

    A function is useful if its accuracy on the labeled rows is at least ``min_accuracy``. Rows are
    weighted so that all classes count alike; otherwise every function that votes for a frequent
    class would be useful. With fewer than ``min_votes`` votes the answer is None.

    Args:
        votes: (r, m) votes of the pool on the labeled rows.
        labels: (r,) integers of 0 .. K-1.
        n_classes: K.
        min_accuracy: Least accuracy of a useful function.
        min_votes: Least number of votes on which it is judged.

    Raises:
        W2SError: Votes or labels are wrong.
    """
    matrix = check_votes(votes, n_classes)
    y = check_labels(labels, len(matrix), n_classes, min_rows=0)
    check_number("min_accuracy", min_accuracy, 0.0, 1.0)
    weight = 1 / torch.bincount(y, minlength=n_classes).double()[y]
    cast = matrix >= 0
    total = weight @ cast.double()
    right = weight @ (cast & (matrix == y[:, None])).double()
    n_votes = cast.sum(0)

    def ask(j: int) -> bool | None:
        if int(n_votes[j]) < min_votes:
            return None
        return bool(right[j] >= min_accuracy * total[j] - 1e-9)

    return ask


def _coincidences(votes: Tensor, rank: int = 50) -> Tensor:
    """Return features (n, R) of rows: leading left singular vectors of which functions vote."""
    cast = (votes >= 0).double()
    left, spread, _ = torch.linalg.svd(cast - cast.mean(0), full_matrices=False)
    return left[:, :rank] * spread[:rank]


def _answer(ask: Callable[[Any], bool | None], function: Any) -> bool | None:
    answer = ask(function)
    if answer is None or isinstance(answer, bool):
        return answer
    if answer in (0, 1):  # NumPy's and torch's truth values
        return bool(answer)
    raise W2SError(f"ask({function!r:.80}) returned {answer!r:.80}; expected True, False or None")


def _select(
    lower: Tensor,
    answers: dict[int, bool | None],
    coverage: Tensor,
    level: float,
    acquisition: str,
    most: int | None,
) -> tuple[int, ...]:
    accepted = [j for j, a in answers.items() if a]
    predicted: list[int] = []
    if acquisition == "level_set":
        rank = (lower * coverage).argsort(descending=True, stable=True).tolist()
        predicted = [j for j in rank if lower[j] > level and coverage[j] > 0 and j not in answers]
    chosen = [*accepted, *predicted][:most]
    if not chosen:
        raise W2SError(
            f"none of {len(answers)} functions asked about is useful; add functions to the pool, "
            "or ask more questions"
        )
    return tuple(sorted(chosen))


def _polarity(votes: Tensor, n_classes: int) -> Tensor:
    """Return the class that each function votes for most, (m,) int64."""
    return torch.stack([(votes == c).sum(0) for c in range(n_classes)]).argmax(0)


def _class_to_ask_about(polarity: Tensor, answers: dict[int, bool | None], open_: Tensor) -> int:
    """Return the class with the fewest accepted functions, of those with functions to ask about."""
    accepted = [int(polarity[j]) for j, answer in answers.items() if answer]
    asked = [int(polarity[j]) for j in answers]
    classes = polarity[open_].unique().tolist()
    return min(classes, key=lambda c: (accepted.count(c), asked.count(c), c))
