"""LoRA of the last transformer layer from a cache of what enters it.

A forward pass of the whole model is paid once: the states of all tokens before the last layer go to
disk. A student is then that layer, the final norm and a head, fed with the stored states. Whether a
model can be cut there is not looked up but tried: the part must give what the whole gives.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.models import ModelConfig
from w2s_fast.models.backbone import with_lora
from w2s_fast.models.classifier import Classifier, Head, pool
from w2s_fast.models.weights import is_partitioned
from w2s_fast.probing.feature_cache import as_bytes, cached, identity
from w2s_fast.training.data import Batch, Encoded, token_batches

_PROBE_ROWS = 4
_SLACK = 32  # largest error of the part, in units of the last place of its largest output


class CachedTokens:
    """States of all tokens as rows of ``train`` and ``predict``, for a ``LastLayer``.

    Args:
        states: (total, D), row after row.
        offsets: (N+1,) int64; row i is ``states[offsets[i]:offsets[i+1]]``.
    """

    def __init__(self, states: Tensor, offsets: np.ndarray) -> None:
        self.states, self.offsets = states, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each row."""
        return np.diff(self.offsets)

    def digest(self) -> str:
        """See ``Encoded``."""
        h = hashlib.sha256(np.ascontiguousarray(self.offsets).tobytes())
        h.update(as_bytes(self.states))
        return h.hexdigest()

    def rows(self, part: slice) -> CachedTokens:
        """Some of the rows, in their order."""
        start, stop, _ = part.indices(len(self))
        low, high = self.offsets[start], self.offsets[stop]
        return CachedTokens(self.states[low:high], self.offsets[start : stop + 1] - low)

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """States (B, T, D), zero where padded on the right, in the place of ids; mask (B, T)."""
        lengths = self.lengths[rows]
        mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
        out = self.states.new_zeros(*mask.shape, self.states.shape[1])
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            out[i, :length] = self.states[self.offsets[row] : self.offsets[row + 1]]
        return Batch(out.to(device), mask.long().to(device), None)


class LastLayer(nn.Module):
    """The last layer of a model, its final norm, and a head in fp32.

    Args:
        base: one-layer base model that takes ``inputs_embeds``.
        n_classes, pooling: see ``Classifier``.
        start: where the head starts, copied.
    """

    def __init__(self, base: nn.Module, n_classes: int, pooling: str, start: nn.Linear) -> None:
        super().__init__()
        self.base: Any = base
        self.n_classes, self.pooling = n_classes, pooling
        self.head = Head(start.in_features, n_classes, dtype=torch.float32)
        self.head.load_state_dict(start.state_dict())

    def forward(self, states: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """(B, C) fp32 logits of states (B, T, D) and their mask (B, T)."""
        return self.head(pool(part_states(self.base, states, mask), mask, self.pooling))


def cache_tokens(
    model: Classifier,
    data: Encoded,
    path: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    batch_size: int = 64,
) -> CachedTokens:
    """What enters the last layer at every token; computed only if ``path`` does not hold it yet.

    Args:
        model: of ``build_model``, on one process.
        data: N rows; ``data.tokens`` times D numbers are stored.
        path, dtype: see ``cache_features``.
        batch_size: rows of one forward at most.

    Raises:
        W2SError: for a model without a list of layers, rows that are pairs, or a file of something
            else at ``path``.
    """
    if len(data.offsets) != len(data) + 1:
        raise W2SError("examples are pairs of rows; expected one row each, or use cache_features")
    last = _layers(model.base)[1][-1]
    device = next(model.parameters()).device
    what = {"layer": "entering the last", **identity(model, data)}

    @torch.inference_mode()
    def fill(out: Tensor | None) -> None:
        for rows in token_batches(data.lengths, batch_size):
            batch = data.batch(rows, device)
            states, _ = _whole(model, last, batch)
            for i, row in enumerate(rows):
                low, high = data.offsets[row], data.offsets[row + 1]
                if out is not None:
                    out[low:high] = states[i, : high - low].to(out)

    shape = (int(data.offsets[-1]), model.base.config.hidden_size)
    return CachedTokens(cached(path, shape, dtype, what, fill), data.offsets)


def last_layer(
    model: Classifier, data: Encoded, lora_rank: int, lora_alpha: int = 16, seed: int = 0
) -> LastLayer:
    """A student of ``cache_tokens``: LoRA on the last layer, everything else but the head frozen.

    It is a copy and leaves ``model`` as it is. Before it is handed out, the part is compared with
    the whole on a few rows of ``data``.

    Args:
        model: of ``build_model``, without LoRA; its head is where the student's starts.
        data: rows to try.
        lora_rank, lora_alpha: see ``ModelConfig``.
        seed: of the random half of LoRA; the global random state is neither used nor changed.

    Raises:
        W2SError: if the part does not give what the whole gives (its embedding or its layers do
            more than a chain), or peft is missing.
    """
    if lora_rank < 1:
        raise W2SError(f"lora_rank is {lora_rank}; expected at least 1")
    part = _cut(model.base)
    _verify(model, part, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        part = with_lora(part, replace(ModelConfig(), lora_rank=lora_rank, lora_alpha=lora_alpha))
    return LastLayer(part, model.n_classes, model.pooling, model.head)


def part_states(base: Any, states: Tensor, mask: Tensor) -> Tensor:
    """(B, T, D) output of a one-layer base on stored states."""
    dtype = next(base.parameters()).dtype
    return base(inputs_embeds=states.to(dtype), attention_mask=mask).last_hidden_state


def _layers(base: Any) -> tuple[str, nn.ModuleList]:
    """Name and value of the list that holds the layers of a base model."""
    count = getattr(getattr(base, "config", None), "num_hidden_layers", None)
    found = [
        (name, m)
        for name, m in base.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) == count
    ]
    if (
        len(found) != 1
        or hasattr(base, "peft_config")
        or any(map(is_partitioned, base.parameters()))
    ):
        raise W2SError(
            f"{type(base).__name__} has no single list of {count} layers to cut; use a decoder "
            "of transformers, whole on this process and without LoRA, or cache_features"
        )
    return found[0]


def _cut(base: Any) -> nn.Module:
    """A copy of the base with its last layer alone, and without its vocabulary."""
    name, layers = _layers(base)
    vocabulary = base.get_input_embeddings()
    path, _, attribute = name.rpartition(".")
    # What is shared by reference is not copied: deepcopy takes these for done.
    kept = nn.ModuleList([layers[-1]])
    part = copy.deepcopy(base, {id(vocabulary): nn.Identity(), id(layers): copy.deepcopy(kept)})
    config = part.config
    config.num_hidden_layers = 1
    for field in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        if isinstance(value := getattr(config, field, None), list):
            setattr(config, field, value[-1:])
    assert len(getattr(part.get_submodule(path), attribute)) == 1
    return part


@torch.inference_mode()
def _verify(model: Classifier, part: nn.Module, data: Encoded) -> None:
    """Raise ``W2SError`` unless the part gives what the whole gives, at every real token."""
    order = np.argsort(data.lengths, kind="stable")
    rows = np.unique(order[np.linspace(0, len(order) - 1, _PROBE_ROWS).round().astype(int)])
    batch = data.batch(rows, next(model.parameters()).device)
    states, wanted = _whole(model, _layers(model.base)[1][-1], batch)
    part.eval()
    why = ""
    try:
        got = part_states(part, states, batch.attention_mask)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as e:
        why = " ".join(str(e).split())[:200]
    else:
        real = batch.attention_mask.bool()
        error = (got - wanted)[real].abs().max().item()
        limit = _SLACK * torch.finfo(wanted.dtype).eps * wanted[real].abs().max().item()
        if not error <= limit:
            why = f"outputs differ by {error:.3g}, more than {limit:.3g}"
    if why:
        raise W2SError(
            f"the last layer of {type(model.base).__name__} alone does not give what the model "
            f"gives: {why}; train it whole, or the head alone from cache_features"
        )


def _whole(model: Classifier, last: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """States entering the last layer and output of the base, both (B, T, D), in eval mode."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    handle = last.register_forward_pre_hook(keep, with_kwargs=True)
    training = model.training
    model.eval()
    try:
        types = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
        out = model.base(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, **types
        ).last_hidden_state
    finally:
        handle.remove()
        model.train(training)
    return found[0], out
