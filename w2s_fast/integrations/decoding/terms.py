"""A model whose logits are added while another model generates, with keys and values of its own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError


@dataclass(frozen=True)
class Term:
    """A model, its coefficient, and what it reads in place of the prompts.

    Attributes:
        model: causal language model of transformers, in eval mode.
        coefficient: factor of its logits.
        input_ids: (B, P) prompts of this model, one for each prompt of the generation; None: the
            same prompts. The generated tokens follow them. Padded on the left.
        attention_mask: (B, P) of ``input_ids``, 0 on padding; None: no padding.
    """

    model: Any
    coefficient: float
    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None


def check_term(term: Term) -> None:
    """Raise ``W2SError`` for a model that cannot be read token by token, or a mask without ids."""
    name = type(term.model).__name__
    config = getattr(term.model, "config", None)
    if config is None or not hasattr(term.model, "get_output_embeddings"):
        raise W2SError(f"model is a {name}; expected a causal language model of transformers")
    if getattr(config, "is_encoder_decoder", False):
        raise W2SError(f"{name} has an encoder; expected a decoder, such as LlamaForCausalLM")
    if term.model.training:
        raise W2SError(f"{name} is in train mode; expected eval mode: call model.eval()")
    ids, mask = term.input_ids, term.attention_mask
    if (ids is None and mask is not None) or (ids is not None and ids.dim() != 2):
        raise W2SError(
            f"input_ids are {None if ids is None else tuple(ids.shape)}; expected (B, P) token ids "
            "beside an attention_mask of a term"
        )
    if ids is not None and mask is not None and mask.shape != ids.shape:
        raise W2SError(
            f"attention_mask has shape {tuple(mask.shape)}; expected {tuple(ids.shape)}, that of "
            "input_ids"
        )


class CachedModel:
    """Logits of the next token, from the tokens since the last call where that is possible.

    Rows may have changed places, as in beam search: each is looked up among those of the last
    call, and the cache is reordered. Rows that do not continue them are read from their beginning,
    so the logits depend only on what is passed.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        self._has = {n for n in ("position_ids", "logits_to_keep") if n in parameters}
        self._ids: Tensor | None = None
        self._mask: Tensor | None = None
        self._cache: Any = None

    def next_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return (N, V) logits of the token after ids (N, L) with their attention mask (N, L)."""
        device = next(self.model.parameters()).device
        ids, mask = ids.to(device), mask.to(device)
        order = self._order(ids, mask)
        new = 1
        if order is None:
            self._cache, new = None, ids.shape[1]
        elif not torch.equal(order, torch.arange(len(order), device=device)):
            self._cache.reorder_cache(order)
        more: dict[str, Any] = {}
        if "position_ids" in self._has:
            more["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -new:]
        if "logits_to_keep" in self._has:
            more["logits_to_keep"] = 1
        out = self.model(
            input_ids=ids[:, -new:], attention_mask=mask, past_key_values=self._cache,
            use_cache=True, return_dict=True, **more,
        )  # fmt: skip
        self._cache = getattr(out, "past_key_values", None)
        self._ids, self._mask = ids, mask
        logits: Tensor = out.logits[:, -1]
        return logits

    def _order(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        """Return (N,) the row of the last call that each row continues by one token, or None."""
        last, read = self._ids, self._mask
        if last is None or read is None or not hasattr(self._cache, "reorder_cache"):
            return None
        if last.shape != (ids.shape[0], ids.shape[1] - 1):
            return None
        before, seen = ids[:, :-1], mask[:, :-1]
        same = ((before == last) & (seen == read)).all(1)
        if bool(same.all()):
            return torch.arange(len(ids), device=ids.device)
        pairs = (before[:, None] == last) & (seen[:, None] == read)
        match = pairs.all(2).to(torch.int8)
        return match.argmax(1) if bool(match.any(1).all()) else None
