r"""Standard errors of maximum-likelihood rates, from the scores of the rows.

    I = sum_i s_i s_i^T,    s_i = d log P(L_i) / d eta = E[d log P(L_i, Y) / d eta | L_i]

eta are log-probabilities up to a constant per distribution, so a rate near 0 or 1 has a finite
score; the covariance of rates is J I^+ J^T with J = diag(R) - R R^T. Fisher's identity gives s_i:
q_ic (1[L_ij = l] - R[j, c, l]) for a rate and q_ic - pi_c for the prior.

Source: Louis 1982, "Finding the observed information matrix when using the EM algorithm"; the
outer product of scores: Berndt, Hall, Hall and Hausman 1974. Errors are those of independent
sources; a dependence between sources makes them too small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models.jackknife import StandardErrors
from w2s_fast.label_models.posterior import FLOOR, class_posterior
from w2s_fast.label_models.votes import OneHotVotes, symbols_of
from w2s_fast.ops.votes.blocks import row_blocks

MAX_PARAMETERS = 4096  # the information matrix takes their square times 8 bytes
_CELLS = 1 << 23  # scores of a block of rows


def likelihood_errors(
    data: OneHotVotes,
    prior: Tensor,
    rates: Tensor,
    *,
    missing: bool,
    one_coin: bool,
    fixed_prior: bool,
) -> StandardErrors:
    """Return standard errors of prior and rates.

    Args:
        data: the rows that were fitted.
        prior: (K,).
        rates: (m, K, K+1).
        missing: rates of votes are relative to the coverage, which counts as known.
        one_coin: one accuracy per source.
        fixed_prior: the prior was given, not estimated.

    Raises:
        W2SError: There are more than ``MAX_PARAMETERS`` parameters.
    """
    m, k, _ = rates.shape
    n_free = (0 if fixed_prior else k) + (m if one_coin else rates.numel())
    if n_free > MAX_PARAMETERS:
        raise W2SError(
            f"standard errors need a matrix of {n_free} x {n_free} parameters; expected at most "
            f"{MAX_PARAMETERS}: bootstrap the rows, or fit fewer sources"
        )
    conditional = missing or one_coin
    coverage = (1 - rates[:, 0, -1]) if conditional else torch.ones(m, dtype=rates.dtype)
    probs = _conditional(rates) if conditional else rates
    q = class_posterior(data, prior, rates)
    information = rates.new_zeros(n_free, n_free)
    for rows in row_blocks(len(data), max(1, _CELLS // rates.numel())):
        symbols = symbols_of(data.votes[rows], k)
        scores = _scores(symbols, q[rows], probs, conditional)
        if one_coin:
            scores = _coin_scores(symbols, q[rows], probs)
        if not fixed_prior:
            scores = torch.cat([q[rows] - prior, scores], 1)
        information += scores.T @ scores
    covariance = torch.linalg.pinv(information, hermitian=True, rtol=1e-10)
    head = 0 if fixed_prior else k
    of_prior = _errors(covariance[:head, :head], prior) if head else torch.zeros_like(prior)
    tail = covariance[head:, head:]
    of_rates = _coin_errors(tail, probs) if one_coin else _rate_errors(tail, probs)
    return StandardErrors(of_prior, coverage[:, None, None] * of_rates)


def _conditional(rates: Tensor) -> Tensor:
    """Return rates given that the source votes, with 0 for the abstention."""
    votes = rates[:, :, :-1]
    votes = votes / votes.sum(2, keepdim=True).clamp(min=FLOOR)
    return torch.cat([votes, torch.zeros_like(votes[:, :, :1])], 2)


def _scores(symbols: Tensor, q: Tensor, probs: Tensor, conditional: bool) -> Tensor:
    """Return (n, m K (K+1)) derivatives of log P(L_i) by eta of every rate."""
    k = q.shape[1]
    indicator = torch.nn.functional.one_hot(symbols, k + 1).to(q.dtype)  # (n, m, K+1)
    difference = indicator[:, :, None, :] - probs
    if conditional:
        difference = difference * (symbols < k)[:, :, None, None]
    return (q[:, None, :, None] * difference).flatten(1)


def _coin_scores(symbols: Tensor, q: Tensor, probs: Tensor) -> Tensor:
    """Return (n, m) derivatives of log P(L_i) by the log-odds of every accuracy."""
    k = q.shape[1]
    padded = torch.cat([q, q.new_zeros(len(q), 1)], 1)
    return padded.gather(1, symbols) - probs[:, 0, 0] * (symbols < k)


def _coin_errors(covariance: Tensor, probs: Tensor) -> Tensor:
    accuracy = probs[:, 0, 0]
    error = covariance.diagonal().clamp(min=0).sqrt() * accuracy * (1 - accuracy)
    k = probs.shape[1]
    spread = torch.full((k, k + 1), 1 / (k - 1), dtype=probs.dtype).fill_diagonal_(1.0)
    spread[:, -1] = 0
    return error[:, None, None] * spread


def _rate_errors(covariance: Tensor, probs: Tensor) -> Tensor:
    m, k, s = probs.shape
    blocks = covariance.view(m * k, s, m * k, s).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    flat = probs.reshape(m * k, s)
    jacobian = torch.diag_embed(flat) - flat[:, :, None] * flat[:, None, :]
    spread = jacobian @ blocks @ jacobian.transpose(1, 2)
    return spread.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt().view(m, k, s)


def _errors(covariance: Tensor, probs: Tensor) -> Tensor:
    jacobian = torch.diag(probs) - torch.outer(probs, probs)
    return (jacobian @ covariance @ jacobian).diagonal().clamp(min=0).sqrt()
