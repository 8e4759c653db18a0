"""What a model computes with its weights, apart from their shapes: its form.

Attention with other heads, another pooling or another scale of LoRA compute something else with
weights of the same shapes, which therefore fit and give other numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

# Of the models of this package.
_SETTINGS = ("pooling", "n_candidates", "prefixes", "prefix", "bound")
# How and where a model runs, where it is from, and names: they may change in a training.
_NOT_FORM = {
    "transformers_version", "peft_version", "architectures", "auto_mapping", "auto_map", "dtype",
    "torch_dtype", "use_cache", "return_dict", "output_attentions", "output_hidden_states",
    "gradient_checkpointing", "name_or_path", "base_model_name_or_path", "revision", "task_type",
    "inference_mode", "runtime_config", "id2label", "label2id",
}  # fmt: skip


def model_form(model: nn.Module) -> dict[str, Any]:
    """Return the settings of a model and its modules by dotted name, as JSON values.

    Those are the configurations of transformers and peft, and settings of the models of this
    package. Other modules have none.
    """
    seen: set[int] = set()  # the layers of a model share its configuration
    form: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, config in _configs(module):
            if id(config) not in seen:
                seen.add(id(config))
                form[f"{name}.{key}".lstrip(".")] = _of_config(config)
        for key in _SETTINGS:
            value = vars(module).get(key, getattr(type(module), key, None))
            if isinstance(value, bool | int | float | str | tuple):
                form[f"{name}.{key}".lstrip(".")] = _plain(value)
    return form


def lowest_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the least precise weights, which sharding does not change.

    DeepSpeed casts the others of a 16-bit model to it, such as a head in fp32.
    """
    dtypes = {p.dtype for p in model.parameters() if p.dtype.is_floating_point}
    return min(dtypes, key=lambda dtype: (dtype.itemsize, str(dtype)), default=torch.float32)


def _configs(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the configurations of a module: of transformers, and of each adapter of peft."""
    if hasattr(config := getattr(module, "config", None), "to_diff_dict"):
        yield "config", config
    adapters = getattr(module, "peft_config", None)
    if isinstance(adapters, Mapping):
        yield from ((f"adapter.{name}", a) for name, a in adapters.items() if hasattr(a, "to_dict"))


def _of_config(config: Any) -> Any:
    """Return what is not the default, so that a setting of a later version changes nothing."""
    if hasattr(config, "to_diff_dict"):
        return _plain(config.to_diff_dict())
    return {k: v for k, v in _plain(config.to_dict()).items() if v not in (None, False, {}, [])}


def _plain(value: Any) -> Any:
    """Return a value as JSON reads it back; of an object that it cannot hold, the type."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if _is_form(str(k))}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))  # ranks iterate over sets each in its own order
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, str):
        return str.__str__(value)  # of an enum the value
    if value is None or isinstance(value, bool | int | float):
        return value
    return type(value).__qualname__


def _is_form(key: str) -> bool:
    return not key.startswith("_") and not key.endswith("_implementation") and key not in _NOT_FORM
