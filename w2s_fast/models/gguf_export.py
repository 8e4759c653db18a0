"""Write the language model in a GGUF file as a folder of safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.files import explain_write_errors
from w2s_fast.models.backbone import ModelConfig, checkpoint, quiet
from w2s_fast.models.build import load_tokenizer
from w2s_fast.models.checkpoint_source import is_gguf
from w2s_fast.paths import user_path


def export_gguf(source: str | Path, folder: str | Path, *, dtype: str = "fp32") -> Path:
    """Write a GGUF file as a folder that transformers and ``source`` of a model load.

    The weights are de-quantised once, here, instead of whenever a stage of a run loads the file.

    Args:
        source: GGUF file of a causal language model.
        folder: Destination; must not exist, or be empty.
        dtype: ``fp32``, ``bf16`` or ``fp16``.

    Returns:
        The folder.

    Raises:
        W2SError: The file is not one that loads, or the folder is not empty or cannot be written.
    """
    file, path = user_path(source, "source"), user_path(folder, "folder")
    if not is_gguf(file):
        raise W2SError(f"source is {str(source)!r}; expected a file whose name ends in .gguf")
    cfg = ModelConfig(str(file), dtype=dtype)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise W2SError(f"{path} is not empty; name a new folder")
    tokenizer = load_tokenizer(cfg)
    model: Any = checkpoint(cfg, causal=True)
    with explain_write_errors("the model", path.absolute()), quiet():
        path.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(path)
        model.save_pretrained(path)
    return path
