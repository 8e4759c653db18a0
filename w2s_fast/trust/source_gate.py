r"""Select sources by gates that are annealed from soft to hard, then refit their weights.

    e_jic   evidence of source j for class c of row i: centred log-probabilities, or for a vote
            [L_ij = c] - 1 / C; 0 where the source abstains
    P(y_i = c) = softmax_c(b_c + sum_j g_j theta_j e_jic)
    g_j = sigma(tau c_j) / sigma(c_0)
    search  min over theta, b, c of  mean CE + lam sum_j sigma(tau c_j),  tau from 1 to ``tau`` in
            geometric steps
    refit   theta and b with g_j = [c_j > 0] / sigma(c_0) fixed; then single gates are opened or
            closed while that lowers  mean CE + lam |{j : g_j > 0}|

lam is the price of a source in nats per row. By default it is log(n) / n, twice that of a parameter
under BIC: of a source of noise, 2 n times the cross-entropy that it saves is chi-squared, and
exceeds log(n) with probability 0.009 at n = 1000, but 2 log(n) with 0.0002. theta starts at small
random numbers, so that of two equal sources one can stay and the other go.

Source: Lyu et al. 2023, OptFS (arXiv 2301.10909), whose gates select features of click models. It
has millions of gates, so its price is about 1e-8. The refit there repeats the training from the
start; here it is convex and runs to its optimum by L-BFGS. Opening and closing gates in the refit
is added: in the search, equal sources share theta while the gates are soft, and both can stay; and
gates can close before theta has grown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.metrics import checked_labels
from w2s_fast.trust._checks import check_number, check_probs, log_probs

_LR = 0.02
_PRIOR_ROWS = 0.1  # weight of the penalty of the refit, which keeps weights finite
_START = 0.5  # c_0


@dataclass(frozen=True, eq=False)
class SourceGate:
    """Selected sources and the weights of their evidence.

    Attributes:
        kept: (m,) bool, sources whose gate is open.
        weights: (m,) float64 g_j theta_j after the refit; 0 for closed gates.
        path: (epochs, m) float64, sigma(tau c) after every epoch of the search.
        intercept: (C,) float64 b.
    """

    kept: np.ndarray
    weights: np.ndarray
    path: np.ndarray
    intercept: np.ndarray
    _votes: bool = field(repr=False)

    def posterior(self, sources: Any) -> np.ndarray:
        """Return class probabilities (N, C) float32.

        Args:
            sources: As in ``fit_source_gate``, for N rows.

        Raises:
            W2SError: They do not fit the gate.
        """
        evidence, votes = _evidence(sources, len(self.intercept))
        if votes != self._votes or len(evidence) != len(self.weights):
            raise W2SError(
                f"{len(evidence)} sources of {'votes' if votes else 'probabilities'}; expected "
                f"{len(self.weights)} of {'votes' if self._votes else 'probabilities'}, those that "
                "the gate was fitted to"
            )
        logits = np.tensordot(self.weights, evidence, 1) + self.intercept
        return torch.from_numpy(logits).softmax(1).numpy().astype(np.float32)


def fit_source_gate(
    sources: Any,
    labels: Any,
    n_classes: int,
    *,
    lam: float | None = None,
    tau: float = 200.0,
    epochs: int = 20,
    steps: int = 50,
    seed: int = 0,
) -> SourceGate:
    """Select sources that help to predict true labels together, and weigh them.

    Args:
        sources: (n, m) integer votes, -1 where a source abstains; or (m, n, C) probabilities,
            rows of NaN where a source abstains.
        labels: (n,) true classes.
        n_classes: C.
        lam: Price of a source, nats per row; None: log(n) / n.
        tau: Last factor of the gates' logits.
        epochs: Values of tau, at least 2.
        steps: Steps of Adam per epoch.
        seed: Seed of the initial weights.

    Raises:
        W2SError: Shapes or values do not fit, or no source is kept.
    """
    evidence, votes = _evidence(sources, n_classes)
    n = evidence.shape[1]
    classes = checked_labels(labels, n, n_classes)
    price = math.log(n) / n if lam is None else check_number("lam", lam, 0)
    last, n_epochs, n_steps = (
        check_number("tau", tau, 1),
        check_number("epochs", epochs, 2),
        check_number("steps", steps, 1),
    )
    e, y = torch.from_numpy(evidence), torch.from_numpy(classes)
    generator = torch.Generator().manual_seed(seed)
    start = 0.1 * torch.rand(len(e), generator=generator, dtype=torch.float64)
    gates, path = _search(e, y, start, price, last, int(n_epochs), int(n_steps))
    kept, weights, intercept = _improve(e, y, gates > 0, price)
    if not kept.any():
        raise W2SError(
            f"lam is {price:.3g} nats, more than any of {len(e)} sources saves; expected a smaller "
            "one, or sources that say more about the labels"
        )
    return SourceGate(kept.numpy(), weights.numpy(), path, intercept.numpy(), votes)


def _search(
    e: Tensor, y: Tensor, start: Tensor, price: float, last: float, epochs: int, steps: int
) -> tuple[Tensor, np.ndarray]:
    """Return the gates' logits (m,) after the search, and sigma(tau c) (epochs, m)."""
    theta = start.clone().requires_grad_()
    intercept = torch.zeros(e.shape[2], dtype=torch.float64, requires_grad=True)
    c = torch.full((len(e),), _START, dtype=torch.float64, requires_grad=True)
    scale = 1 / torch.sigmoid(torch.tensor(_START, dtype=torch.float64))
    optimizer = torch.optim.Adam([theta, intercept, c], lr=_LR)
    path = []
    for epoch in range(epochs):
        tau = last ** (epoch / (epochs - 1))
        for _ in range(steps):
            optimizer.zero_grad()
            gate = torch.sigmoid(tau * c)
            logits = torch.tensordot(scale * gate * theta, e, 1) + intercept
            loss = torch.nn.functional.cross_entropy(logits, y) + price * gate.sum()
            loss.backward()
            optimizer.step()
        path.append(torch.sigmoid(tau * c.detach()))
    return c.detach(), torch.stack(path).numpy()


def _improve(e: Tensor, y: Tensor, kept: Tensor, price: float) -> tuple[Tensor, Tensor, Tensor]:
    """Open or close single gates while that lowers CE plus the price of the open ones.

    Returns the open gates (m,), the weights (m,) and the intercept (C,).
    """
    loss, weights, intercept = _refit(e, y, kept)
    while True:
        flips = []
        for j in reversed(range(len(e))):  # of equal sources, the first stays
            flipped = kept.clone()
            flipped[j] = ~kept[j]
            flips.append((*_refit(e, y, flipped, weights), flipped))
        best = min(flips, key=lambda fit: round(fit[0] + price * int(fit[3].sum()), 9))
        if best[0] + price * int(best[3].sum()) > loss + price * int(kept.sum()) - 1e-9:
            return kept, weights, intercept
        loss, weights, intercept, kept = best


def _refit(
    e: Tensor, y: Tensor, kept: Tensor, start: Tensor | None = None
) -> tuple[float, Tensor, Tensor]:
    """Return the loss, the weights g_j theta_j (m,) and the intercept (C,) of open gates."""
    theta = torch.zeros(int(kept.sum()), dtype=torch.float64) if start is None else start[kept]
    theta = theta.clone().requires_grad_()
    intercept = torch.zeros(e.shape[2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta, intercept], max_iter=200, tolerance_grad=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.tensordot(theta, e[kept], 1) + intercept, y)
        # Separable labels have no finite optimum; the intercept is only defined up to a constant.
        loss = loss + _PRIOR_ROWS / len(y) * (theta.square().sum() + intercept.square().sum())
        loss.backward()
        return loss

    optimizer.step(closure)
    weights = torch.zeros(len(e), dtype=torch.float64)
    weights[kept] = theta.detach()
    return float(closure().detach()), weights, intercept.detach()


def _evidence(sources: Any, n_classes: int) -> tuple[np.ndarray, bool]:
    """Return evidence (m, n, C) float64, 0 where a source abstains, and whether it is of votes."""
    array = np.asarray(sources)
    if array.ndim == 2 and array.dtype.kind in "iu" and array.size:
        votes = array.T.astype(np.int64)
        bad = (votes < -1) | (votes >= n_classes)
        if bad.any():
            source, row = (int(i) for i in np.argwhere(bad)[0])
            raise W2SError(
                f"vote of source {source} for row {row} is {votes[source, row]}; expected 0 to "
                f"{n_classes - 1}, or -1 where the source abstains"
            )
        one = np.eye(n_classes)[votes] - 1 / n_classes
        return np.where((votes >= 0)[:, :, None], one, 0.0), True
    if array.ndim != 3 or array.dtype.kind != "f" or array.shape[2] != n_classes or not array.size:
        raise W2SError(
            f"sources have shape {array.shape} and dtype {array.dtype}; expected integer votes "
            f"(rows, sources), or probabilities (sources, rows, {n_classes})"
        )
    evidence = np.zeros(array.shape)
    for j, probs in enumerate(array):
        given = ~np.isnan(probs).all(1)
        if given.any():
            logs = log_probs(check_probs(probs[given], name=f"sources[{j}]"))
            evidence[j, given] = logs - logs.mean(1, keepdims=True)
    return evidence, False
