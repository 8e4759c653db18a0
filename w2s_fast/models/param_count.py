"""A model by numbers, from its configuration alone: parameters, and bytes of a micro-batch.

The model runs once on tensors without memory; what autograd would keep is added up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.models.backbone import ModelConfig

PERSISTENCE = 100_000  # DeepSpeed's stage3_param_persistence_threshold


@dataclass(frozen=True)
class Counts:
    """A model by numbers; bytes are of one micro-batch.

    Attributes:
        parameters, trained: of all weights, and of those with gradients.
        largest: parameters of the largest module that is used as a whole.
        small: parameters of weights below the persistence threshold.
        matrix: parameters of matrices that multiply, embeddings left out.
        activations: what autograd keeps.
        transient: the largest single tensor among them.
    """

    parameters: int
    trained: int
    largest: int
    small: int
    matrix: int
    activations: int
    transient: int


def count(model: ModelConfig, rows: int, tokens: int, checkpointing: bool) -> Counts:
    """Run the model once on tensors that have no memory.

    Raises:
        W2SError: If it has no config.json, or its forward needs values.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from w2s_fast.models.backbone import build_untrained

    with FakeTensorMode():
        base = build_untrained(model)
        head = base.config.hidden_size * 2 + 2
        whole = [p.numel() for p in base.parameters()]
        kept, transient = _saved(base, torch.zeros((rows, tokens), dtype=torch.int64))
        if checkpointing:
            layers = max(1, getattr(base.config, "num_hidden_layers", 1))
            base.train()
            _checkpoint(base)
            inputs, _ = _saved(base, torch.zeros((rows, tokens), dtype=torch.int64))
            kept = inputs + kept // layers  # one layer is computed again at a time
    embeddings = base.get_input_embeddings().weight.numel()
    linear = [m for m in base.modules() if isinstance(m, torch.nn.Linear)]
    updates = sum(model.lora_rank * (m.in_features + m.out_features) for m in linear)
    return Counts(
        parameters=sum(whole) + updates + head,
        trained=(updates if model.lora_rank else sum(whole)) + head,
        largest=max(_own(m) for m in base.modules()),
        small=sum(size for size in whole if size < PERSISTENCE) + head,
        matrix=sum(p.numel() for p in base.parameters() if p.dim() > 1) - embeddings,
        activations=kept,
        transient=transient,
    )


def _saved(model: Any, ids: Any) -> tuple[int, int]:
    """(bytes that autograd keeps of a forward, the largest of them)."""
    import torch

    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(t: Any) -> Any:
        storage = t.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that its address stays its own
        return t

    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = model(input_ids=ids).last_hidden_state
    except RuntimeError as e:
        raise W2SError(
            f"{type(model).__name__} cannot be planned, its forward looks at values: "
            f"{' '.join(str(e).split())[:200]}"
        ) from e
    sizes = [storage.nbytes() for storage in kept.values()]
    del out
    return sum(sizes), max(sizes, default=0)


def _own(module: Any) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


def _checkpoint(base: Any) -> None:
    new = hasattr(base, "activation_checkpointing_enable")
    name = "activation_checkpointing_enable" if new else "gradient_checkpointing_enable"
    getattr(base, name)({"use_reentrant": False})
