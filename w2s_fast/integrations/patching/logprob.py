"""Log-probabilities of answers from a patched model, for losses of pairs or of policies.

B sequences, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.forward import refuse_logits
from w2s_fast.integrations.patching.heads import through
from w2s_fast.integrations.patching.values import read_targets
from w2s_fast.ops.fused_linear.logprob import IGNORE, linear_logprob
from w2s_fast.ops.lazy_logits import Projected


def answer_logprob(lm: Any, given: dict[str, Any]) -> Tensor:
    """(B,) log-probabilities of the labelled tokens of each sequence, summed; fp32.

    What ``model(input_ids=..., labels=..., return_logprob=True)`` gives. ``labels`` (B, T) are -100
    where nothing counts and are shifted as always; only labelled positions reach the head.

    Raises:
        W2SError: without labels, or with labels of another shape, dtype or type.
    """
    refuse_logits(given)
    lm._w2s_fast.asked = True
    labels = given.pop("labels", None)
    for name in ("shift_labels", "num_items_in_batch", "return_dict"):
        given.pop(name, None)
    if labels is None:
        raise W2SError("return_logprob came without labels; give the tokens of the answers, (B, T)")
    hidden = lm.base_model(**given, return_dict=True).last_hidden_state
    size = (hidden.shape[0], hidden.shape[1])
    labels = read_targets({"labels": labels}, size, hidden.device)["labels"]
    if labels.shape != hidden.shape[:2]:
        raise W2SError(
            f"labels has shape {tuple(labels.shape)}; expected {tuple(hidden.shape[:2])} to fit "
            "the batch"
        )
    tokens = labels[:, 1:]
    # Compiled code must not wait to learn which positions count; it takes all of them.
    compiling = torch.compiler.is_compiling()
    rows = None if compiling else (tokens != IGNORE).flatten().nonzero()[:, 0]
    project = lm._w2s_fast.project(Projected)

    def then(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = project(hidden, weight, bias)
        scale: dict[str, Any] = {"softcap": x.softcap, "memory_mib": x.memory_mib}
        logp: Any = linear_logprob(x.hidden, x.weight, tokens, positions=rows, bias=x.bias, **scale)
        return logp

    summed: Tensor = through(lm.get_output_embeddings(), hidden[:, :-1], then)
    return summed
