"""Causal language model for generation tasks; its loss is computed inside the call of its head.

B sequences, T tokens, D hidden, V vocabulary, n label positions of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.models.classifier import check_length, position_limit, switch_checkpointing
from w2s_fast.models.packed_attention import Packing, can_pack
from w2s_fast.models.weights import is_partitioned, shape_of
from w2s_fast.ops.lazy_logits import Projected, logit_form


class Projection(nn.Module):
    """The head as a module that owns its weight, which sharding gathers for the call.

    The parameters are those of the language model's own head, not copies.
    """

    def __init__(self, head: Any, softcap: float, factor: float) -> None:
        super().__init__()
        self.weight: nn.Parameter = head.weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", getattr(head, "bias", None))
        self.softcap, self.factor = softcap, factor

    def forward(self, hidden: Tensor, logits_fn: Callable[[Projected], Tensor] | None) -> Any:
        """Return the uncomputed logits of hidden (n, D), or ``logits_fn`` of them."""
        hidden = hidden.to(self.weight.dtype)
        if self.factor != 1:
            hidden = hidden * self.factor
        logits = Projected(hidden, self.weight, self.bias, self.softcap)
        return logits if logits_fn is None else logits_fn(logits)


class GenerativeModel(nn.Module):
    """A language model whose forward returns uncomputed logits of the completion tokens.

    Args:
        lm: transformers model with a language-model head, whose backbone returns
            ``last_hidden_state``.

    Attributes:
        n_classes: V, rows of the head.
        base: the backbone.

    Raises:
        W2SError: if its logits are more than a linear head on its last hidden states.
    """

    pooling = "last"

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm
        head = lm.get_output_embeddings()
        if head is None or len(shape_of(head.weight)) != 2:
            raise W2SError(f"{type(lm).__name__} has no language-model head; expected a decoder")
        softcap, factor = logit_form(lm.config)
        if getattr(head, "bias", None) is not None:
            factor = 1.0  # would scale the bias too; ``_verify`` raises where that matters
        self.head = Projection(head, softcap, factor)
        self.n_classes = int(shape_of(head.weight)[0])
        self._limit = position_limit(lm)
        if not (head.weight.is_meta or any(map(is_partitioned, lm.parameters()))):
            self._verify()

    @property
    def base(self) -> Any:
        """The backbone without the head."""
        return getattr(self.lm, self.lm.base_model_prefix)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        logits_fn: Callable[[Projected], Tensor] | None = None,
        packing: Packing | None = None,
    ) -> Any:
        """Return uncomputed logits (n, V) of the given positions, or ``logits_fn`` of them.

        Args:
            input_ids, attention_mask: (B, T), right-padded.
            positions: (n,) of the flattened (B, T).
            logits_fn: function of the logits, a loss for instance. It is called inside the
                forward, where a sharded head is gathered.
            packing: which of the tokens to compute; not used by a backbone that cannot.

        Returns:
            ``Projected`` logits, or the result of ``logits_fn``.
        """
        check_length(input_ids, self._limit)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if packing is not None and can_pack(self.lm, input_ids.shape[1]):
            inputs = packing.backbone_inputs(input_ids)
            positions = packing.place.flatten().index_select(0, positions)
        hidden = self.base(**inputs, use_cache=False).last_hidden_state
        return self.head(hidden.flatten(0, 1).index_select(0, positions), logits_fn)

    def gradient_checkpointing(self, on: bool) -> None:
        """Turn recomputation of activations in backward on or off."""
        switch_checkpointing(self.lm, on)

    @torch.no_grad()
    def _verify(self) -> None:
        """Compare with the model's own logits on two tokens; some models scale or shift them."""
        training = self.lm.training
        self.lm.eval()
        ids = torch.tensor([[0, min(1, self.n_classes - 1)]], device=self.head.weight.device)
        mask = torch.ones_like(ids)
        expected = self.lm(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
        computed = self(ids, mask, torch.arange(2, device=ids.device)).dense().float()
        self.lm.train(training)
        tolerance = 64 * torch.finfo(self.head.weight.dtype).eps * expected.abs().max()
        if not (expected - computed).abs().max() <= tolerance:
            raise W2SError(
                f"the logits of {type(self.lm).__name__} are more than its head on its last hidden "
                "states; use another architecture"
            )
