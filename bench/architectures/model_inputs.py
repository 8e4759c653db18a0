"""Make batches for tiny models: text, and images, audio or boxes where a model requires them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.architectures.tiny_models import V

Inputs = dict[str, Tensor]
B, T = 3, 8


def batches(model: Any) -> Iterator[Inputs]:
    """Yield text; text with other modalities; other modalities with labels of the decoder."""
    text = text_batch()
    yield text
    extra = extras(model)
    if not extra:
        return
    yield {**_with_images(text, model.config), **extra}
    yield {**extra, "labels": text["labels"]}


def text_batch() -> Inputs:
    """Return (3, 8) token ids, some masked, the first two of each row without a label."""
    ids = torch.randint(5, V - 26, (B, T), generator=torch.Generator().manual_seed(0))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[:, :2] = -100
    mask[0, 6:], labels[0, 6:] = 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _with_images(text: Inputs, config: Any) -> Inputs:
    """Return text that begins with image placeholders if the model expects a fixed number."""
    token = getattr(config, "image_token_index", None) or getattr(config, "video_token_index", None)
    queries = getattr(config, "num_query_tokens", None)
    if token is None or queries is None:
        return text
    ids = text["input_ids"].clone()
    ids[:, :queries] = token
    return {**text, "input_ids": ids}


def extras(model: Any) -> Inputs:
    """Return inputs of other modalities by the parameter names of the forward."""
    g = torch.Generator().manual_seed(2)
    extra: Inputs = {}
    for name in inspect.signature(type(model).forward).parameters:
        shape = _shape(name, model.config)
        if shape:
            extra[name] = torch.randn(shape, generator=g)
    names = inspect.signature(type(model).forward).parameters
    if "flattened_patches" in extra:
        extra["flattened_patches"][..., :2] = 1.0  # row and column
    if "image_embeds_position_mask" in names:
        extra["image_embeds_position_mask"] = (torch.arange(T) < 2).repeat(B, 1)
    if "input_values" in extra:
        extra.pop("input_features", None)
    if "mm_token_type_ids" in names:
        extra["mm_token_type_ids"] = torch.zeros((B, T), dtype=torch.int64)
        extra.pop("pixel_values", None)
    if "bbox" in names:
        extra["bbox"] = torch.rand((B, T, 4), generator=g)
    if "qformer_input_ids" in names:
        extra["qformer_input_ids"] = torch.randint(5, 20, (B, 4), generator=g)
    return extra


def _shape(name: str, config: Any) -> tuple[int, ...] | None:
    configs = [config, *(getattr(config, n, None) for n in _TOWERS)]
    if name == "pixel_values":
        size, channels = _first(configs, "image_size"), _first(configs, "num_channels") or 3
        size = size[0] if isinstance(size, tuple | list) else size
        frames = (2,) if "video" in config.model_type else ()
        return (B, *frames, channels, size, size) if size else None
    if name == "flattened_patches":
        return (B, 4, 2 + (_first(configs, "patch_embed_hidden_size") or 0))
    if name == "input_features":
        mel = (
            _first(configs, "num_mel_bins") or _first(configs, "feature_projection_input_dim") or 80
        )
        length = _first(configs, "max_source_positions")
        if config.model_type == "whisper":
            return (B, mel, 2 * length)
        return (B, 64, mel)
    if name == "input_values":
        return (B, 4000)
    return None


_TOWERS = ("vision_config", "encoder", "audio_config", "encoder_config", "speech_config")


def _first(configs: list[Any], name: str) -> Any:
    """Return the field of the first configuration that has it."""
    return next((v for c in configs if c is not None and (v := getattr(c, name, None))), None)
