"""Rows of tokens in one sequence without padding, where rows that begin alike share the beginning.

Everything but attention treats tokens independently, so a backbone can compute R rows as one
sequence of M tokens: without padding, and with the common beginning of rows, such as a prompt,
once. Attention alone gathers queries, keys and values into the R rows, where a causal mask is
enough, and drops the duplicates of its result. It is an attention function of transformers, which
receives the ``Packing`` as a keyword argument, also when activations are recomputed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.models.weights import is_partitioned

# Name of the attention function; without a packing it is transformers' "sdpa".
ATTENTION = "w2s_packed_sdpa"
# Fields of a configuration that limit how far back a token attends.
_WINDOWS = ("sliding_window", "attention_chunk_size")


class Packing(NamedTuple):
    """Which of R right-padded rows of T tokens are computed, and where each is found.

    Attributes:
        source: (M,) int64 index of each computed token in the flattened (R, T).
        place: (R, T) int64 index of each token among the M; 0 where a row is padded.
    """

    source: Tensor
    place: Tensor

    def backbone_inputs(self, input_ids: Tensor) -> dict[str, Any]:
        """Return the keyword arguments of a backbone for the (R, T) tokens."""
        return {
            "input_ids": input_ids.flatten().index_select(0, self.source)[None],
            "position_ids": (self.source % self.place.shape[1])[None],
            # transformers takes four dimensions for a finished mask and makes none of its own.
            "attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=input_ids.device),
            "packing": self,
        }


def packed_sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each row of a packing.

    Args:
        module: attention module of a transformers model.
        query: (1, H, M, d), like key and value, which may have fewer heads.
        attention_mask: of an unpacked call; not used with a packing.
        packing: of M tokens; None: transformers' own function.
        kwargs: of transformers' function.

    Returns:
        (1, M, H, d), and None in the place of attention weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packing is None:
        whole, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return whole, None
    shape = packing.place.shape
    index = packing.place.flatten()

    def rows(x: Tensor) -> Tensor:
        return x[0].transpose(0, 1).index_select(0, index).unflatten(0, shape).transpose(1, 2)

    out, _ = sdpa_attention_forward(module, rows(query), rows(key), rows(value), None, **kwargs)
    return out.flatten(0, 1).index_select(0, packing.source)[None], None


def can_pack(lm: Any, length: int) -> bool:
    """Return whether the backbone computes packed rows of ``length`` tokens as it does padded ones.

    The first call compares both on a few tokens and sets the attention function of the model.

    Args:
        lm: transformers model with a language-model head.
        length: tokens of the longest row.
    """
    if not hasattr(lm, "_w2s_packs"):
        lm._w2s_packs = _try_packing(lm)
    config = lm.config.get_text_config()
    windows = (getattr(config, name, None) for name in _WINDOWS)
    return bool(lm._w2s_packs) and all(w is None or length <= w for w in windows)


def _try_packing(lm: Any) -> bool:
    base = getattr(lm, lm.base_model_prefix)
    if getattr(lm.config, "_attn_implementation", None) != "sdpa" or any(
        map(is_partitioned, lm.parameters())
    ):
        return False
    _register()
    training = lm.training
    lm.eval()
    lm.set_attn_implementation(ATTENTION)
    try:
        same = _same_states(lm, base)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        same = False  # an architecture without positions, or with an attention of its own
    finally:
        lm.train(training)
    if not same:
        lm.set_attn_implementation("sdpa")
    return same


@torch.no_grad()
def _same_states(lm: Any, base: Any) -> bool:
    """Compare the hidden states of two rows with a common beginning, packed and padded."""
    weight = lm.get_output_embeddings().weight
    ids = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 3, 0, 0]], device=weight.device) % len(weight)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=weight.device)
    padded = base(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    source = torch.tensor([0, 1, 2, 3, 4, 7], device=weight.device)
    place = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 5, 0, 0]], device=weight.device)
    inputs = Packing(source, place).backbone_inputs(ids)
    packed = base(**inputs, use_cache=False).last_hidden_state[0]
    want = padded.flatten(0, 1)[source].float()
    error = (packed.float() - want).abs().max()
    return bool(error <= 64 * torch.finfo(padded.dtype).eps * want.abs().max())


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_sdpa)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
