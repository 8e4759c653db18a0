"""``StepTargets`` of many heads: equal ones are computed together, as one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from w2s_fast.probing.head_runs import Rows
from w2s_fast.probing.head_stack import HeadStack, View
from w2s_fast.training.self_targets import SelfTargets
from w2s_fast.training.step_targets import StepTargets, soft_rows
from w2s_fast.training.views import dropped_features


def branches_of(targets: StepTargets | None) -> int:
    """Return the number of heads of a run."""
    return 1 if targets is None else targets.branches


class HeadTargets:
    """The step targets of H heads, with the teachers' weights.

    Args:
        targets: of each head; None: it learns the weak labels. Both heads of ``CoTeaching`` follow
            each other.
        stack: the heads.
        classes: C.
        seed: of the training.
    """

    def __init__(
        self, targets: Sequence[StepTargets | None], stack: HeadStack, classes: int, seed: int
    ) -> None:
        self._targets, self._stack, self._classes, self._seed = targets, stack, classes, seed
        device = stack.weight.device
        own = [t if isinstance(t, SelfTargets) else None for t in targets]
        rates = [t.drop if t is not None else 0.0 for t in own]
        self._views = {
            rate: torch.tensor([i for i, r in enumerate(rates) if r == rate], device=device)
            for rate in sorted(set(rates) - {0.0})
        }
        self._groups: dict[StepTargets, list[int]] = {}
        for i, t in enumerate(targets):
            if t is not None:
                self._groups.setdefault(t, []).append(i)
        self._taught = [i for i, t in enumerate(own) if t is not None and t.has_teacher]
        self._place = {head: place for place, head in enumerate(self._taught)}
        self._teachers = [t for t in own if t is not None and t.has_teacher]
        self._weight, self._bias = stack.of(torch.tensor(self._taught, dtype=torch.long))

    def views(self, x: Tensor, step: int) -> list[View]:
        """Return what the heads read of the features (B, D) of a step."""
        every = torch.arange(len(self._targets), device=x.device)
        dropped = (
            View(heads, dropped_features(x, range(len(x)), rate, self._seed, step))
            for rate, heads in self._views.items()
        )
        return [View(every, x), *dropped]

    def rewritten(
        self, x: Tensor, logits: Tensor, labels: Sequence[Rows], step_frac: float
    ) -> list[Rows]:
        """Return what every head learns in a step; a head without targets its labels themselves.

        Args:
            x: (B, D) features as they are.
            logits: (H, B, C), each head's of the view that it reads.
            labels: weak labels and weights of each head.
            step_frac: optimizer step / total steps.
        """
        out = list(labels)
        soft: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        for targets, heads in self._groups.items():
            rows = []
            for head in heads[:: targets.branches]:
                weak, weight = labels[head]
                key = id(weak), id(weight)  # heads share the labels of a run's array
                if key not in soft:
                    soft[key] = soft_rows(weak, weight, self._classes)
                rows.append(soft[key])
            weak, weight = (torch.stack(parts) for parts in zip(*rows, strict=True))
            if targets.active(step_frac):
                z = self._first_pass(targets, heads, x, logits)
                weak, weight = targets.rows(z, weak, weight, step_frac)
            for i, head in enumerate(heads):
                run, branch = divmod(i, targets.branches)
                own = weight[run] if targets.branches == 1 else weight[run, :, branch]
                out[head] = weak[run], own
        return out

    def _first_pass(
        self, targets: StepTargets, heads: Sequence[int], x: Tensor, logits: Tensor
    ) -> Tensor:
        """Return the logits (S, B, C) that targets are made of, (S, B, 2, C) for two branches."""
        if isinstance(targets, SelfTargets) and (targets.has_teacher or targets.drop):
            if targets.has_teacher:
                places = [self._place[head] for head in heads]
                weight, bias = self._weight[places], self._bias[places]
            else:
                weight, bias = self._stack.of(torch.tensor(heads, device=x.device))
            z = torch.addmm(bias.flatten(), x, weight.flatten(0, 1).T)
            return z.view(len(x), len(heads), -1).transpose(0, 1)
        z = logits[torch.tensor(heads, device=x.device)]
        return z if targets.branches == 1 else z.unflatten(0, (-1, 2)).transpose(1, 2)

    def update(self, done: int) -> None:
        """Let the teachers follow the heads after ``done`` steps, see ``Teacher``."""
        kept = []
        for targets in self._teachers:
            n, rest = divmod(done, targets.refresh)
            kept.append(1.0 if rest else targets.kept_at_update(n))
        if any(share < 1 for share in kept):
            weight, bias = self._stack.of(torch.tensor(self._taught, device=self._weight.device))
            moved = 1 - torch.tensor(kept, dtype=torch.float64).to(weight)
            self._weight.lerp_(weight, moved[:, None, None].expand_as(weight))
            self._bias.lerp_(bias, moved[:, None].expand_as(bias))

    def final(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the final weights (H, C, D) and biases (H, C): the trained ones or a teacher's."""
        last = [i for i, t in enumerate(self._teachers) if t.final == "teacher"]
        if not last:
            return weight, bias
        heads = [self._taught[i] for i in last]
        weight, bias = weight.clone(), bias.clone()
        weight[heads], bias[heads] = self._weight[last], self._bias[last]
        return weight, bias
