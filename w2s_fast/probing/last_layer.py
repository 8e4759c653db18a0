"""LoRA of the last transformer layer, trained on cached inputs of that layer.

The whole model runs once, and the states of all tokens before the last layer are stored on disk. A
student is that layer, the final norm and a head, applied to the stored states. Whether a model can
be split there is tested: the part must reproduce the outputs of the whole.
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

from w2s_fast.errors import W2SError, one_line
from w2s_fast.models import ModelConfig
from w2s_fast.models.backbone import with_lora
from w2s_fast.models.classifier import Classifier, Head, pool
from w2s_fast.models.weights import is_partitioned
from w2s_fast.probing.feature_cache import as_bytes, cached, identity
from w2s_fast.training.data import Batch, Encoded, token_batches
from w2s_fast.training.train_mode import eval_mode

_PROBE_ROWS = 4
_TOLERANCE_ULP = 32  # largest error of the part, in units of the last place of its largest output


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
        """Select contiguous rows."""
        start, stop, _ = part.indices(len(self))
        low, high = self.offsets[start], self.offsets[stop]
        return CachedTokens(self.states[low:high], self.offsets[start : stop + 1] - low)

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """Return right-padded states (B, T, D) in place of token ids, and their mask (B, T)."""
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
        start: initial head, copied.
    """

    def __init__(self, base: nn.Module, n_classes: int, pooling: str, start: nn.Linear) -> None:
        super().__init__()
        self.base: Any = base
        self.n_classes, self.pooling = n_classes, pooling
        self.head = Head(start.in_features, n_classes, dtype=torch.float32)
        self.head.load_state_dict(start.state_dict())

    def forward(self, states: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """Return (B, C) fp32 logits of states (B, T, D) and their mask (B, T)."""
        return self.head(pool(part_states(self.base, states, mask), mask, self.pooling))


def cache_tokens(
    model: Classifier,
    data: Encoded,
    path: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    batch_size: int = 64,
) -> CachedTokens:
    """Return the input of the last layer at every token; computed unless ``path`` exists.

    Args:
        model: from ``build_model``, on one process.
        data: N rows; one state of D numbers is stored for each token.
        path, dtype: see ``cache_features``.
        batch_size: maximum rows of one forward.

    Raises:
        W2SError: for a model without a list of layers, rows that are pairs, or a file with other
            contents at ``path``.
    """
    if len(data.offsets) != len(data) + 1:
        raise W2SError("examples are pairs of rows; expected one row each, or use cache_features")
    last = _layers(model.base)[1][-1]
    device = next(model.parameters()).device
    metadata = {"layer": "entering the last", **identity(model, data)}

    @torch.inference_mode()
    def fill(out: Tensor | None) -> None:
        for rows in token_batches(data.lengths, batch_size):
            batch = data.batch(rows, device)
            states, _ = _reference(model, last, batch)
            for i, row in enumerate(rows):
                low, high = data.offsets[row], data.offsets[row + 1]
                if out is not None:
                    out[low:high] = states[i, : high - low].to(out)

    shape = (int(data.offsets[-1]), model.base.config.hidden_size)
    return CachedTokens(cached(path, shape, dtype, metadata, fill), data.offsets)


def last_layer(
    model: Classifier, data: Encoded, lora_rank: int, lora_alpha: int = 16, seed: int = 0
) -> LastLayer:
    """Build a student for ``cache_tokens``: LoRA on the last layer and a trained head.

    The student is a copy; ``model`` is not changed. It is compared with ``model`` on a few rows of
    ``data`` first.

    Args:
        model: from ``build_model``, without LoRA; its head is the initial head of the student.
        data: rows to compare on.
        lora_rank, lora_alpha: see ``ModelConfig``.
        seed: of LoRA's random initialisation; the global random state is neither used nor changed.

    Raises:
        W2SError: if the part does not reproduce the whole (its embedding or layers do more than a
            chain), or peft is missing.
    """
    if lora_rank < 1:
        raise W2SError(f"lora_rank is {lora_rank}; expected at least 1")
    part = _split(model.base)
    _verify(model, part, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        part = with_lora(part, replace(ModelConfig(), lora_rank=lora_rank, lora_alpha=lora_alpha))
    return LastLayer(part, model.n_classes, model.pooling, model.head)


def part_states(base: Any, states: Tensor, mask: Tensor) -> Tensor:
    """Return the (B, T, D) output of a one-layer base on stored states."""
    dtype = next(base.parameters()).dtype
    return base(inputs_embeds=states.to(dtype), attention_mask=mask).last_hidden_state


def _layers(base: Any) -> tuple[str, nn.ModuleList]:
    """Return name and value of the list of layers of a base model."""
    count = getattr(getattr(base, "config", None), "num_hidden_layers", None)
    lists = [
        (name, m)
        for name, m in base.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) == count
    ]
    if (
        len(lists) != 1
        or hasattr(base, "peft_config")
        or any(map(is_partitioned, base.parameters()))
    ):
        raise W2SError(
            f"{type(base).__name__} has no single list of {count} layers to split; use a "
            "transformers decoder, not sharded and without LoRA, or cache_features"
        )
    return lists[0]


def _split(base: Any) -> nn.Module:
    """Copy the base with its last layer alone, and without its vocabulary."""
    name, layers = _layers(base)
    vocabulary = base.get_input_embeddings()
    path, _, attribute = name.rpartition(".")
    # The memo makes deepcopy use these replacements instead of copying the modules.
    last = copy.deepcopy(nn.ModuleList([layers[-1]]))
    part = copy.deepcopy(base, {id(vocabulary): nn.Identity(), id(layers): last})
    config = part.config
    config.num_hidden_layers = 1
    for field in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        if isinstance(value := getattr(config, field, None), list):
            setattr(config, field, value[-1:])
    assert len(getattr(part.get_submodule(path), attribute)) == 1
    return part


@torch.inference_mode()
def _verify(model: Classifier, part: nn.Module, data: Encoded) -> None:
    """Raise ``W2SError`` unless the part reproduces the whole at every real token."""
    order = np.argsort(data.lengths, kind="stable")
    rows = np.unique(order[np.linspace(0, len(order) - 1, _PROBE_ROWS).round().astype(int)])
    batch = data.batch(rows, next(model.parameters()).device)
    states, expected = _reference(model, _layers(model.base)[1][-1], batch)
    part.eval()
    reason = ""
    try:
        output = part_states(part, states, batch.attention_mask)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as e:
        reason = one_line(e, 200)
    else:
        real = batch.attention_mask.bool()
        error = (output - expected)[real].abs().max().item()
        limit = _TOLERANCE_ULP * torch.finfo(expected.dtype).eps * expected[real].abs().max().item()
        if not error <= limit:
            reason = f"outputs differ by {error:.3g}, more than {limit:.3g}"
    if reason:
        raise W2SError(
            f"the last layer of {type(model.base).__name__} alone does not reproduce the model: "
            f"{reason}; train the whole model, or the head alone from cache_features"
        )


def _reference(model: Classifier, last: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the input of the last layer and the output of the base, both (B, T, D)."""
    inputs: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(args[0] if args else kwargs["hidden_states"])

    handle = last.register_forward_pre_hook(record, with_kwargs=True)
    types = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
    try:
        with eval_mode(model):
            out = model.base(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, **types
            ).last_hidden_state
    finally:
        handle.remove()
    return inputs[0], out
