"""A ``LogitsProcessor`` of transformers that adds the logits of other models.

The other models run beside the one that generates, each with its own cache of keys and values, on
the prompts of the generation or on their own. Greedy search, sampling, beam search and assisted
generation are served: the rows of a beam that change places are found by their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.decoding.arithmetic import check_coefficients, combine
from w2s_fast.integrations.decoding.terms import CachedModel, Term, check_term


class LogitArithmetic:
    """Replace the logits z of the generating model by own z + sum_m a_m z_m, see ``combine``.

    ``generate`` takes it as any ``LogitsProcessor``. It returns log-probabilities, so that the
    scores of beams are comparable. transformers applies temperature, top-k and top-p afterwards.

    Args:
        terms: the other models, with their coefficients.
        own: coefficient of the generating model.
        alpha: of the plausibility mask, over the generating model's probabilities; 0 for none.
        attention_mask: (B, T) of the prompts, as ``generate`` gets it: 0 on the left of shorter
            prompts. None: no padding.
        vocab_size: number of tokens that all models share, for heads of different sizes: what lies
            beyond is padding, and is excluded. None: the heads must be of one size.

    Raises:
        W2SError: for models, coefficients or masks that do not fit; while generating, for heads of
            different sizes, a mask that does not fit the prompts, or padding without a mask.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        *,
        own: float = 1.0,
        alpha: float = 0.0,
        attention_mask: Tensor | None = None,
        vocab_size: int | None = None,
    ) -> None:
        if not terms or not all(isinstance(term, Term) for term in terms):
            raise W2SError(
                f"terms are {terms!r}; expected at least one Term(model, coefficient) in a list"
            )
        for term in terms:
            check_term(term)
        check_coefficients([own, *(term.coefficient for term in terms)], alpha)
        if vocab_size is not None and (isinstance(vocab_size, bool) or vocab_size < 1):
            raise W2SError(
                f"vocab_size is {vocab_size!r}; expected the number of shared tokens, such as "
                "len(tokenizer)"
            )
        self.terms, self.own, self.alpha = tuple(terms), own, alpha
        self.attention_mask, self.vocab_size = attention_mask, vocab_size
        self._models = [CachedModel(term.model) for term in terms]
        self._prompts: Tensor | None = None
        self._length = 0

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return (N, V) log-probabilities of the next token after ``input_ids`` (N, L)."""
        prompts = self._prompts_of(input_ids)
        others = []
        for term, model in zip(self.terms, self._models, strict=True):
            ids, mask = self._context(term, input_ids, prompts)
            logits = model.next_logits(ids, mask).to(scores.device)
            others.append((term.coefficient, self._shared(logits, scores, term)))
        size = self.vocab_size or scores.shape[1]
        mixed = combine(scores[:, :size], others, own=self.own, alpha=self.alpha)
        out = torch.full_like(scores, -torch.inf)
        out[:, :size] = mixed.to(scores.dtype)
        return out

    def _prompts_of(self, ids: Tensor) -> Tensor:
        """Return the prompts of this generation: a call that does not go on begins a new one."""
        known = self._prompts
        goes_on = known is not None and (
            known.shape[0] == ids.shape[0]
            and known.shape[1] < ids.shape[1] <= self._length + 1
            and torch.equal(ids[:, : known.shape[1]], known)
        )
        if not goes_on:
            self._prompts = ids.clone()
        self._length = ids.shape[1]
        assert self._prompts is not None
        return self._prompts

    def _context(self, term: Term, ids: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids and mask (N, L) of what the model of a term has read so far."""
        n, start = ids.shape[0], prompts.shape[1]
        if term.input_ids is None:
            first, mask = prompts, self.attention_mask
            _check_padding(first, mask, term.model)
        else:
            first, mask = _expanded("input_ids", term.input_ids, n), term.attention_mask
        if mask is None:
            mask = torch.ones_like(first)
        mask = _expanded("attention_mask", mask, n)
        if mask.shape[1] != first.shape[1]:
            raise W2SError(
                f"attention_mask has {mask.shape[1]} columns, the prompts {first.shape[1]}; "
                "expected the mask that generate gets, and one LogitArithmetic for each call"
            )
        new = ids[:, start:]
        whole = torch.cat([first.to(new.device), new], 1)
        return whole, torch.cat([mask.to(new), torch.ones_like(new)], 1)

    def _shared(self, logits: Tensor, scores: Tensor, term: Term) -> Tensor:
        """Return the columns of the shared tokens."""
        size, widths = self.vocab_size, (scores.shape[1], logits.shape[1])
        name = type(term.model).__name__
        if size is None and widths[0] != widths[1]:
            raise W2SError(
                f"the generating model has {widths[0]} logits, the {name} of a term {widths[1]}; "
                "expected one vocabulary: if their tokenizers are the same and only the heads are "
                "padded differently, pass vocab_size=check_same_vocabulary(tokenizer, other)"
            )
        if size is not None and size > min(widths):
            raise W2SError(
                f"vocab_size is {size}, but the models have {widths[0]} and {widths[1]} logits; "
                f"expected at most {min(widths)}"
            )
        return logits[:, :size]


def guided(weak: Any, scale: float, **options: Any) -> LogitArithmetic:
    """Return z_w + scale (z_s - z_w), for a strong model that generates beside a weak one.

    Scale 0 is the weak model, 1 the strong one; above 1 moves away from the weak model, by the
    direction in which the strong one differs from it.

    Args:
        weak: causal language model with the vocabulary of the strong one.
        scale: g of the formula.
        options: ``alpha``, ``attention_mask`` and ``vocab_size`` of ``LogitArithmetic``.

    Raises:
        W2SError: see ``LogitArithmetic``.
    """
    check_coefficients([scale], 0.0)
    return LogitArithmetic([Term(weak, 1 - scale)], own=scale, **options)


def contrastive(
    bias: Any,
    scale: float = 1.0,
    *,
    alpha: float = 0.1,
    input_ids: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    **options: Any,
) -> LogitArithmetic:
    """Return z - scale z_bias over the plausible tokens, to remove what a bias model prefers.

    With a smaller model as ``bias`` and the default scale, this is contrastive decoding. With the
    generating model itself as ``bias`` and ``input_ids`` without the content of the prompts, z_bias
    is the model's prior for the answer.

    Args:
        bias: causal language model with the vocabulary of the generating one, or that model.
        scale: a of the formula.
        alpha: of the plausibility mask; Li et al. 2022 use 0.1. With 0, tokens that both models
            find very unlikely may win.
        input_ids: (B, P) prompts that ``bias`` reads; None: those of the generation.
        prompt_mask: (B, P) attention mask of ``input_ids``.
        options: ``attention_mask`` and ``vocab_size`` of ``LogitArithmetic``.

    Raises:
        W2SError: see ``LogitArithmetic``.
    """
    check_coefficients([scale], alpha)
    term = Term(bias, -scale, input_ids, prompt_mask)
    return LogitArithmetic([term], alpha=alpha, **options)


def _expanded(name: str, x: Tensor, n: int) -> Tensor:
    """Repeat the row of each prompt for its beams or samples, which stand side by side."""
    if x.dim() != 2 or x.shape[0] == 0 or n % x.shape[0]:
        raise W2SError(
            f"{name} has shape {tuple(x.shape)}; expected (B, P) for a generation of {n} rows, "
            "one row for each prompt"
        )
    return x.repeat_interleave(n // x.shape[0], 0)


def _check_padding(prompts: Tensor, mask: Tensor | None, model: Any) -> None:
    """Raise ``W2SError`` for prompts that begin with padding if no mask says so."""
    pad = getattr(model.config, "pad_token_id", None)
    if mask is not None or not isinstance(pad, int):
        return
    begins = (prompts[:, 0] == pad).nonzero()
    if len(begins) and model.config.bos_token_id != pad:
        raise W2SError(
            f"prompt {int(begins[0])} begins with the padding token {pad} and attention_mask is "
            "None; expected the mask that generate gets: pass attention_mask=inputs.attention_mask"
        )
