"""Where a model's checkpoint is: a folder of transformers files, or one GGUF file.

transformers reads GGUF files and de-quantises their weights. Such a file holds configuration,
weights and tokenizer, and no code or pickle.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.files import is_folder

GGUF_SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_PACKAGES = ("gguf", "accelerate")  # what transformers needs to read such a file


def is_gguf(path: Path) -> bool:
    """Return whether a model source is the name of a GGUF file, which may not exist."""
    return path.suffix.lower() == GGUF_SUFFIX


def is_checkpoint(path: Path) -> bool:
    """Return whether a model source is an existing folder or GGUF file."""
    return path.is_file() if is_gguf(path) else is_folder(path)


def from_pretrained_arguments(path: Path) -> dict[str, Any]:
    """Return the arguments of transformers' ``from_pretrained`` that name a checkpoint's files."""
    if is_gguf(path):
        name = str(path.absolute().parent)
        return {"pretrained_model_name_or_path": name, "gguf_file": str(path.absolute())}
    return {"pretrained_model_name_or_path": path}


def weight_arguments(path: Path) -> dict[str, Any]:
    """Return what ``from_pretrained`` of a model needs besides, so that its weights are floats.

    Otherwise transformers may keep them quantised, and always refuses to save the model.
    """
    import transformers

    gguf_config = getattr(transformers, "GgufConfig", None)  # older versions de-quantise anyway
    if not is_gguf(path) or gguf_config is None:
        return {}
    return {"quantization_config": gguf_config(dequantize=True)}


def check_gguf(path: Path) -> None:
    """Check that a GGUF file exists and can be read on this machine.

    Raises:
        W2SError: A package is missing, or the file is missing or of another format.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise W2SError(
            f"{path} is a GGUF file, which needs {' and '.join(missing)}: "
            'pip install "w2s-fast[gguf]"'
        )
    try:
        with path.open("rb") as f:
            magic = f.read(len(_MAGIC))
    except OSError as e:
        raise W2SError(f"{path} cannot be read: {e.strerror or e}; name an existing file") from e
    if magic != _MAGIC:
        raise W2SError(
            f"{path} begins with {magic!r}, not with {_MAGIC!r}; expected a GGUF file, so download "
            "it again or name another"
        )
