"""A module that owns a language model's head and computes the weak-to-strong loss with it.

Sharding libraries gather a weight, and reduce its gradient, when the module that owns it is called.
A weight that is used outside its module is empty under ZeRO-3 or FSDP, and DDP does not see its
gradient. The loss is therefore a module that owns the weight.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.targets import SparseTargets
from w2s_fast.ops.vocab_parallel.dtensor import is_dtensor


class LMHeadLoss(nn.Module):
    """``linear_cross_entropy`` of a head that may be sharded, tied or frozen.

    The parameters are those of ``head``, not copies. Build it before
    the model goes to DeepSpeed, DDP or FSDP, as a part of that model, and call it inside the
    model's forward:

        class Student(nn.Module):
            def __init__(self, lm):
                super().__init__()
                self.lm, self.loss = lm, LMHeadLoss(lm.lm_head)

            def forward(self, input_ids, weak):
                hidden = self.lm.model(input_ids).last_hidden_state
                return self.loss(hidden[:, :-1], weak[:, 1:])

    Args:
        head: has ``weight`` (V, D) and maybe ``bias`` (V,), an ``nn.Linear`` for instance.
        memory_mib: what the logits of one chunk may take, in MiB; None: as for
            ``linear_cross_entropy``.
        softcap: of the model's logits; 0 for none.

    Raises:
        W2SError: if ``head`` has no weight of two dimensions.
    """

    def __init__(
        self, head: nn.Module, *, memory_mib: float | None = None, softcap: float = 0.0
    ) -> None:
        super().__init__()
        weight = getattr(head, "weight", None)
        if not isinstance(weight, nn.Parameter) or len(_shape(weight)) != 2:
            raise W2SError(
                f"head is {type(head).__name__} without a weight (V, D); expected the module that "
                "makes logits, such as model.lm_head"
            )
        self.weight = weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", getattr(head, "bias", None))
        self.memory_mib, self.softcap = memory_mib, softcap

    def forward(
        self, hidden: Tensor, weak: Tensor | SparseTargets | None = None, **options: Any
    ) -> Any:
        """Compute the loss of hidden states (N, D) or (B, T, D) against weak labels, or a teacher.

        Labels and weights of (B, T, D) may be flat or (B, T, ...); ``SparseTargets`` are then
        ``ids`` and ``probs`` (B, T, K), ``rest`` (B, T).
        ``options`` are the keywords of ``linear_cross_entropy``. A batch without any row
        that counts returns 0 and gradients of 0, so processes of a sharded training stay in step.

        Raises:
            W2SError: if the weight is still sharded, see ``check_gathered``. Beside hidden states
                that are a DTensor, it may be sharded over its classes.
        """
        if not is_dtensor(hidden):  # tensor parallelism; the op reads the placements
            check_gathered(self.weight)
        options = {"memory_mib": self.memory_mib, "softcap": self.softcap, **options}
        return linear_cross_entropy(hidden, self.weight, weak, bias=self.bias, **options)

    def extra_repr(self) -> str:
        """Return the sizes of the head."""
        shape = _shape(self.weight)
        return f"classes={shape[0]}, hidden={shape[1]}, memory_mib={self.memory_mib}"


def check_gathered(weight: Tensor) -> None:
    """Raise ``W2SError`` for a head that FSDP2 or ZeRO-3 has not gathered."""
    if hasattr(weight, "device_mesh") or weight.numel() == 0:
        raise W2SError(
            f"the head is sharded, this process holds {tuple(weight.shape)} as "
            f"{type(weight).__name__}; call the model that FSDP or DeepSpeed has wrapped, and let "
            "one of its groups hold all modules that share this weight"
        )


def _shape(p: nn.Parameter) -> tuple[int, ...]:
    """Return the shape of the whole parameter; a partitioned one is empty, with ``ds_shape``."""
    return tuple(getattr(p, "ds_shape", p.shape))
