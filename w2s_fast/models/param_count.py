"""Parameters of a model and memory of a micro-batch, from the model's configuration alone.

The model runs once on fake tensors without memory; the tensors that autograd would save are added
up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError, one_line
from w2s_fast.files import is_folder
from w2s_fast.models.backbone import ModelConfig, architecture
from w2s_fast.models.checkpoint_source import is_gguf
from w2s_fast.tasks import EMBEDDED

PERSISTENCE = 100_000  # DeepSpeed's stage3_param_persistence_threshold


@dataclass(frozen=True)
class Counts:
    """Parameters of a model, and bytes of one micro-batch.

    Attributes:
        parameters, trained: number of all weights, and of those with gradients.
        largest: parameters of the largest module that owns weights.
        small: parameters in weights below the persistence threshold.
        matrix: parameters of weight matrices without embeddings.
        activations: bytes that autograd saves.
        transient: bytes of the largest saved tensor.
    """

    parameters: int
    trained: int
    largest: int
    small: int
    matrix: int
    activations: int
    transient: int


def count(model: ModelConfig, rows: int, tokens: int, checkpointing: bool) -> Counts:
    """Count parameters and saved activations of a model on fake tensors.

    Raises:
        W2SError: if it has no config.json that can be read, or its forward needs values.
    """
    _check_configuration(model)
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from w2s_fast.models.backbone import build_untrained
    from w2s_fast.models.classifier import switch_checkpointing

    with FakeTensorMode(), _uninitialized():
        base = build_untrained(model)
        head = base.config.hidden_size * 2 + 2
        sizes = [p.numel() for p in base.parameters()]
        saved, transient = _saved_bytes(base, torch.zeros((rows, tokens), dtype=torch.int64))
        if checkpointing:
            layers = max(1, getattr(base.config, "num_hidden_layers", 1))
            base.train()
            switch_checkpointing(base, True)
            inputs, _ = _saved_bytes(base, torch.zeros((rows, tokens), dtype=torch.int64))
            saved = inputs + saved // layers  # one layer at a time is recomputed
    embeddings = base.get_input_embeddings().weight.numel()
    linear = [m for m in base.modules() if isinstance(m, torch.nn.Linear)]
    updates = sum(model.lora_rank * (m.in_features + m.out_features) for m in linear)
    return Counts(
        parameters=sum(sizes) + updates + head,
        trained=(updates if model.lora_rank else sum(sizes)) + head,
        largest=max(_n_own_parameters(m) for m in base.modules()),
        small=sum(size for size in sizes if size < PERSISTENCE) + head,
        matrix=sum(p.numel() for p in base.parameters() if p.dim() > 1) - embeddings,
        activations=saved,
        transient=transient,
    )


def _check_configuration(model: ModelConfig) -> None:
    """Check that a model has a configuration: runs build some from their texts instead."""
    folder = Path(model.source)
    named = model.source in EMBEDDED or is_gguf(folder)  # `architecture` says what is wrong there
    if not named and not (is_folder(folder) and (folder / "config.json").is_file()):
        raise W2SError(
            f"student {model.source!r} has no config.json; give the folder of a checkpoint, or a "
            ".gguf file, as student.source"
        )
    architecture(model)


def _uninitialized() -> Any:
    """Return the context in which transformers leaves weights as they are allocated.

    Some initial values are drawn until they fit a range, which tensors without memory cannot do.
    """
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # before transformers 5
        from transformers.modeling_utils import no_init_weights
    return no_init_weights()


def _saved_bytes(model: Any, ids: Any) -> tuple[int, int]:
    """Return (bytes that autograd saves in a forward, bytes of the largest tensor)."""
    import torch

    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    storages: dict[int, Any] = {}

    def keep(t: Any) -> Any:
        storage = t.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage  # held, so that its address is not reused
        return t

    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = model(input_ids=ids).last_hidden_state
    except RuntimeError as e:
        raise W2SError(
            f"the memory of {type(model).__name__} cannot be estimated, its forward reads values: "
            f"{one_line(e, 200)}"
        ) from e
    sizes = [storage.nbytes() for storage in storages.values()]
    del out
    return sum(sizes), max(sizes, default=0)


def _n_own_parameters(module: Any) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))
