r"""Low-rank students: every linear layer of a backbone as a product of two, W ~ U V.

    W = sum_i s_i u_i v_i^T,   U = [u_1 s_1^(1/2) .. u_r s_r^(1/2)],   V = [s_1^(1/2) v_1 ..]^T
    r = max(1, floor(share m n / (m + n)))       a layer (m, n) keeps ``share`` of its parameters

Layers that this would not make smaller stay as they are. ``merge_low_rank`` turns the products
back into weights of the architecture, which any library loads.

Source: Guo, Wang & Kankanhalli 2023 (PELA, arXiv 2310.10700), with the same rank for a share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import World
from w2s_fast.errors import W2SError
from w2s_fast.models.classifier import pool, switch_checkpointing
from w2s_fast.models.weights import gathered, shape_of


class LowRankLinear(nn.Module):
    """y = U (V x) + b.

    Args:
        down: V (r, inputs).
        up: U (outputs, r).
        bias: (outputs,), or None.
        full: (outputs, inputs), the weight that U V is kept near to; None: none. It is not trained.
        transposed: whether the layer was one of GPT-2, which stores weights (inputs, outputs).
    """

    def __init__(
        self,
        down: Tensor,
        up: Tensor,
        bias: Tensor | None,
        full: Tensor | None = None,
        *,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.full = None if full is None else nn.Parameter(full, requires_grad=False)
        self.transposed = transposed

    def forward(self, x: Tensor | None) -> Tensor:
        """Return (..., outputs) of x (..., inputs); of None the 0-d deviation max |U V - W|.

        A forward, because only in one ZeRO-3 has the weights gathered.
        """
        if x is None:
            assert self.full is not None
            return (self.up @ self.down - self.full).abs().max()
        return nn.functional.linear(nn.functional.linear(x, self.down), self.up, self.bias)


class FeatureModel(nn.Module):
    """Features of a low-rank backbone and the deviation of its weights, for feature distillation.

    Args:
        classifier: ``Classifier`` whose backbone ``factorise(..., keep_full=True)`` has changed.
        bound: deviation of a layer that costs nothing, at least 0.
    """

    def __init__(self, classifier: Any, bound: float) -> None:
        super().__init__()
        self.base: Any = classifier.base
        self.pooling, self.n_candidates = classifier.pooling, classifier.n_candidates
        self.bound, self.n_classes = bound, classifier.base.config.hidden_size + 1

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """Return (B, D + 1): pooled features, and mean over layers of (deviation - bound)^2.

        Features of a pair of candidates are those of the second minus those of the first, as cached
        ones are.
        """
        segments = {} if types is None else {"token_type_ids": types}
        hidden = self.base(input_ids=ids, attention_mask=mask, **segments).last_hidden_state
        x = pool(hidden, mask, self.pooling).float()
        if self.n_candidates == 2:
            x = x[1::2] - x[::2]
        layers = [m for m in self.base.modules() if isinstance(m, LowRankLinear)]
        deviations = torch.stack([layer(None).float() for layer in layers])
        penalty = (deviations - self.bound).square().mean()
        return torch.cat([x, penalty.expand(len(x), 1)], dim=1)

    def gradient_checkpointing(self, on: bool) -> None:
        """Turn recomputation of activations in backward on or off."""
        switch_checkpointing(self.base, on)


def rank_of(share: float, outputs: int, inputs: int) -> int:
    """Return the rank at which two factors have ``share`` of the parameters of a weight."""
    return max(1, int(share * outputs * inputs / (outputs + inputs)))


def factorise(base: nn.Module, share: float, world: World, *, keep_full: bool = False) -> None:
    """Replace the linear layers of a backbone by products of rank ``rank_of``, in place.

    A collective call: the factors are those of rank 0, so that they are equal on every process.

    Args:
        base: backbone of a transformers model, whole or partitioned by ZeRO-3.
        share: of the parameters of each layer that stay, in (0, 1].
        world: processes of the job.
        keep_full: keep the weights beside the factors, for ``FeatureModel``.

    Raises:
        W2SError: ``share`` is out of range, or no layer becomes smaller.
    """
    if not 0 < share <= 1:
        raise W2SError(f"low_rank is {share}; expected the share of parameters to keep, in (0, 1]")
    replaced = 0
    for parent, name, layer in list(_linear_layers(base)):
        transposed = not isinstance(layer, nn.Linear)
        shape = shape_of(layer.weight)
        outputs, inputs = reversed(shape) if transposed else shape
        rank = rank_of(share, outputs, inputs)
        if rank * (outputs + inputs) >= outputs * inputs:
            continue
        tensors = [layer.weight, *([] if layer.bias is None else [layer.bias])]
        with gathered(tensors), torch.no_grad():
            weight = layer.weight.detach().T if transposed else layer.weight.detach()
            up, down = factors(weight, rank)
            up, down = (world.broadcast(t.cpu().contiguous(), 0).to(weight) for t in (up, down))
            bias = None if layer.bias is None else layer.bias.detach().clone()
            full = weight.contiguous().clone() if keep_full else None
        setattr(parent, name, LowRankLinear(down, up, bias, full, transposed=transposed))
        replaced += 1
    if not replaced:
        raise W2SError(
            f"low_rank is {share}, at which no linear layer of the model becomes smaller; expected "
            "a smaller share, or a larger model"
        )


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return U (m, r) and V (r, n) of the best approximation of weight (m, n), in its dtype."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    u, s, v = torch.linalg.svd(wide, full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(weight), (root[:, None] * v[:rank]).to(weight)


def merge_low_rank(base: nn.Module) -> None:
    """Replace the products of ``factorise`` by layers with the weights U V, in place."""
    for parent, name, layer in list(_children(base, LowRankLinear)):
        with torch.no_grad():
            dtype = torch.promote_types(layer.up.dtype, torch.float32)
            weight = (layer.up.to(dtype) @ layer.down.to(dtype)).to(layer.up.dtype)
            made = _like(layer, *weight.shape).to(weight)
            made.weight.copy_(weight.T if layer.transposed else weight)
            if layer.bias is not None:
                made.bias.copy_(layer.bias)
        setattr(parent, name, made)


def is_low_rank(base: nn.Module) -> bool:
    """Return whether a backbone has products of ``factorise``."""
    return any(isinstance(m, LowRankLinear) for m in base.modules())


def _like(layer: LowRankLinear, outputs: int, inputs: int) -> Any:
    if not layer.transposed:
        return nn.Linear(inputs, outputs, bias=layer.bias is not None)
    from transformers.pytorch_utils import Conv1D

    return Conv1D(outputs, inputs)


def _linear_layers(base: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield parent, name and layer of every linear layer; GPT-2 calls its own Conv1D."""
    from transformers.pytorch_utils import Conv1D

    yield from _children(base, (nn.Linear, Conv1D))


def _children(base: nn.Module, kinds: Any) -> Iterator[tuple[nn.Module, str, Any]]:
    for parent in base.modules():
        for name, child in parent.named_children():
            if isinstance(child, kinds):
                yield parent, name, child
