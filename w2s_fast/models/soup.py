"""Soups: the mean of the weights of several models that were finetuned from one.

    theta = sum_i a_i theta_i,   sum_i a_i = 1

A low-rank update is a product, and the mean of products is not the product of the means. The mean
update is therefore added to the weight under it, and B becomes zero:

    W <- sum_i a_i (W_i + s B_i A_i),   B <- 0,   A <- A_1

Tensors are read one at a time and summed in fp32 (fp64 weights in fp64), so a soup of any number of
files needs the memory of one tensor and its sum. A tied weight is stored once and averaged once.

Source: Wortsman et al. 2022, "Model soups" (arXiv 2203.05482): the uniform soup, and the greedy
soup, recipe 1. There a member joins by its accuracy on held-out true labels; any score does here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from w2s_fast.errors import W2SError

if TYPE_CHECKING:
    from torch import Tensor, nn

_ADAPTER = "default"  # of peft's layers, as ``with_lora`` names it
_TOLERANCE = 1e-6  # of the sum of the shares


@dataclass(frozen=True)
class LoraLayer:
    """One low-rank update.

    Attributes:
        scale: s, the factor of B A.
        transposed: whether the weight is (inputs, outputs), as in GPT-2, so that (B A)^T is added.
    """

    scale: float
    transposed: bool = False


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Return the LoRA layers of a model by the name of their module; none without LoRA."""
    layers: dict[str, LoraLayer] = {}
    for name, module in model.named_modules():
        part: Any = module
        if hasattr(part, "base_layer") and _ADAPTER in getattr(part, "lora_A", ()):
            layers[name] = LoraLayer(
                float(part.scaling[_ADAPTER]), bool(getattr(part, "fan_in_fan_out", False))
            )
    return layers


class Soup(Mapping[str, "Tensor"]):
    """The mean of several sets of weights, computed tensor by tensor on access.

    ``save_tensors`` and ``load_module`` take it in the place of a state dict.

    Args:
        states: at least one map of names to tensors: state dicts, or ``read_tensors`` of files.
            Names, shapes and dtypes are the same in all; tensors that are no floating-point numbers
            are equal.
        shares: a_i, finite, their sum 1; None: equal shares.
        lora: ``lora_layers`` of the model, for weights with LoRA.

    Raises:
        W2SError: the sets or shares do not fit, or there are LoRA weights without ``lora``. Values
            are compared on access.
    """

    def __init__(
        self,
        states: Sequence[Mapping[str, Tensor]],
        shares: Sequence[float] | None = None,
        *,
        lora: Mapping[str, LoraLayer] | None = None,
    ) -> None:
        if not states:
            raise W2SError("states is empty; expected the weights of at least one model")
        self._states, self._lora = tuple(states), dict(lora or {})
        self._shares = _checked_shares(shares, len(states))
        names = set(states[0])
        for i, state in enumerate(states[1:], 1):
            if odd := sorted(names ^ set(state)):
                raise W2SError(
                    f"weights {i} and weights 0 differ in {odd[0]!r}; expected models of one "
                    "architecture"
                )
        adapted = {n for n in names if ".lora_" in n and n.split(".lora_")[0] not in self._lora}
        if adapted and len(states) > 1:
            raise W2SError(
                f"{min(adapted)!r} is a part of a LoRA update, whose mean is not that of its "
                "factors; pass lora=lora_layers(model)"
            )

    def __len__(self) -> int:
        return len(self._states[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._states[0])

    def __getitem__(self, name: str) -> Tensor:
        first = self._states[0][name]
        if len(self._states) == 1 or (".lora_A." in name and name.split(".lora_")[0] in self._lora):
            return first
        layer, _, end = name.rpartition(".base_layer.")
        if end == "weight" and layer in self._lora:
            return self._mean(name, first, lambda i: self._update(i, layer))
        if ".lora_B." in name:
            return first.new_zeros(first.shape)
        return self._mean(name, first)

    def _mean(
        self, name: str, first: Tensor, update: Callable[[int], Tensor] | None = None
    ) -> Tensor:
        """Return the mean of a tensor, each with its update, in the dtype of the first."""
        import torch

        exact = not first.is_floating_point()
        dtype = torch.promote_types(first.dtype, torch.float32)
        total = torch.zeros_like(first, dtype=dtype)
        for i, (state, share) in enumerate(zip(self._states, self._shares, strict=True)):
            t = state[name]
            if t.shape != first.shape or t.dtype != first.dtype:
                raise W2SError(
                    f"{name!r} is {t.dtype} {tuple(t.shape)} in weights {i}, {first.dtype} "
                    f"{tuple(first.shape)} in weights 0; expected models of one architecture"
                )
            if exact:
                if not torch.equal(t, first):
                    raise W2SError(
                        f"{name!r} has other integers in weights {i} than in weights 0; expected "
                        "equal ones, which have no mean"
                    )
                continue
            own = t.to(total)
            total.add_(own if update is None else own + update(i).to(own), alpha=share)
        return first if exact else total.to(first.dtype)

    def _update(self, i: int, layer: str) -> Tensor:
        """Return s B A of one model, fp32 or fp64, as its weight has it."""
        import torch

        a, b = (self._states[i][f"{layer}.lora_{part}.{_ADAPTER}.weight"] for part in "AB")
        dtype = torch.promote_types(a.dtype, torch.float32)
        product = (b.to(dtype) @ a.to(dtype)) * self._lora[layer].scale
        return product.T if self._lora[layer].transposed else product


def _checked_shares(shares: Sequence[float] | None, n: int) -> tuple[float, ...]:
    if shares is None:
        return (1 / n,) * n
    if len(shares) != n:
        raise W2SError(f"shares has {len(shares)} numbers for {n} sets of weights; expected {n}")
    if not all(map(math.isfinite, shares)) or abs(sum(shares) - 1) > _TOLERANCE:
        raise W2SError(f"shares is {list(shares)}; expected finite numbers whose sum is 1")
    return tuple(shares)


def greedy_members(
    scores: Sequence[float], score: Callable[[tuple[int, ...]], float]
) -> tuple[int, ...]:
    """Return which models the greedy soup is made of, the best first.

    Models are tried from the best to the worst, equal ones in their order; one joins if the score
    of the soup does not fall.

    Args:
        scores: score of each model alone, the larger the better.
        score: returns the score of the soup of these models; called once for each but the best.

    Raises:
        W2SError: there are no scores, or one is not finite.
    """
    if not len(scores) or not all(map(math.isfinite, scores)):
        raise W2SError(f"scores is {list(scores)}; expected a finite number for each model")
    first, *rest = sorted(range(len(scores)), key=lambda i: -scores[i])
    chosen: tuple[int, ...] = (first,)
    best = scores[first]
    for i in rest:
        if (joined := score((*chosen, i))) >= best:
            chosen, best = (*chosen, i), joined
    return chosen
