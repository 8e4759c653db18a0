"""Transformers backbones: their configuration, and how they are created or loaded.

Weights are safetensors only; nothing is downloaded and no pickle is read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_fast.errors import W2SError, nearest, one_line
from w2s_fast.files import read_text
from w2s_fast.models.checkpoint_source import (
    check_gguf,
    from_pretrained_arguments,
    is_gguf,
    weight_arguments,
)
from w2s_fast.models.weights import read_index
from w2s_fast.paths import PathText, expand_paths
from w2s_fast.tasks import EMBEDDED

if TYPE_CHECKING:
    from torch import nn

BUILT_IN = (*EMBEDDED, "scratch", "bow")
POOLINGS = ("last", "mean", "cls")
HEAD_INITS = ("zero", "small")
DTYPES = ("fp32", "bf16", "fp16")
FREEZES = ("none", "base")
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")


@dataclass(frozen=True)
class ModelConfig:
    """One model.

    Attributes:
        source: ``agreement-lm`` (the language model pretrained for the task `agreement`),
            ``word-problems-lm`` or ``word-problems-small-lm`` (for the task `word_problems`),
            ``scratch`` (a small Llama from random weights), ``bow`` (linear bag of words; needs
            a larger learning rate, about 0.1), a directory with a transformers checkpoint
            (config.json, model.safetensors, tokenizer), or a .gguf file, whose weights are
            de-quantised (needs the packages gguf and accelerate).
        hidden, layers, heads: size of ``scratch``.
        pooling: input of the head: the ``last`` token (by attention mask; decoders), the
            ``mean`` over tokens, or the first token (``cls``; encoders).
        head_init: ``zero`` as in openai/weak-to-strong, or ``small``: 0.01 times the default, as
            in EleutherAI/w2s.
        dtype: ``fp32``, ``bf16`` or ``fp16`` (with ZeRO only, for its loss scaling). The optimizer
            keeps fp32 masters, and the head computes in fp32.
        lora_rank: train low-rank updates of the linear layers, and a classifier's head, instead of
            all weights; 0: all weights. Needs peft.
        lora_alpha: scale of the updates; the update is multiplied by lora_alpha / lora_rank.
        trust_remote_code: allow a checkpoint to run its own code.
        pretrained: False keeps a checkpoint's architecture with random weights: the control that
            shows the contribution of pretraining.
        freeze: ``base`` trains the head alone (linear probing, Burns et al. 2023, App. D.2);
            ``none`` everything.
        preference: for tasks of kind `preference`. Empty: a reward model, whose head scores each
            completion. Or a preference loss, such as ``dpo:beta=0.1`` or ``simpo``: the model is a
            language model, whose implicit rewards by this loss are its scores.
    """

    source: PathText = "scratch"
    hidden: int = 32
    layers: int = 1
    heads: int = 4
    pooling: str = "last"
    head_init: str = "zero"
    dtype: str = "fp32"
    lora_rank: int = 0
    lora_alpha: int = 16
    trust_remote_code: bool = False
    pretrained: bool = True
    freeze: str = "none"
    preference: str = ""

    def __post_init__(self) -> None:
        if not self.source:
            raise W2SError(f"source is empty; expected {', '.join(BUILT_IN)} or a directory")
        expand_paths(self)
        for name, names in (
            ("pooling", POOLINGS),
            ("head_init", HEAD_INITS),
            ("dtype", DTYPES),
            ("freeze", FREEZES),
        ):
            value = getattr(self, name)
            if value not in names:
                hint = nearest(value, names)
                raise W2SError(f"{name} is {value!r}; expected one of {', '.join(names)}{hint}")
        for name in ("hidden", "layers", "heads"):
            if getattr(self, name) < 1:
                raise W2SError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.lora_rank < 0 or self.lora_alpha < 1:
            raise W2SError(
                f"lora_rank is {self.lora_rank}, lora_alpha {self.lora_alpha}; expected at least 0 "
                "and 1"
            )
        if self.freeze == "base" and (self.lora_rank or self.source == "bow"):
            raise W2SError(
                f"freeze='base' at source={self.source!r}, lora_rank={self.lora_rank}: nothing but "
                "a head would train; use a transformers model without LoRA, or freeze='none'"
            )
        if self.lora_rank and self.source == "bow":
            raise W2SError("a bag of words has no linear layers for lora_rank; set it to 0")
        if self.hidden % (2 * self.heads):
            raise W2SError(
                f"hidden={self.hidden} does not split into {self.heads} heads of even width; use "
                "a multiple of 2 * heads"
            )


def build_untrained(cfg: ModelConfig) -> Any:
    """Build a checkpoint's base model from its config.json, with random weights and no LoRA."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(**_location(cfg))
    config.use_cache = False
    return _from_config(config, cfg)


def with_lora(base: Any, cfg: ModelConfig) -> Any:
    """Add LoRA to all linear layers of a model.

    Raises:
        W2SError: if peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as e:
        raise W2SError(f"lora_rank={cfg.lora_rank} needs peft ({e}): pip install peft") from e
    lora = LoraConfig(
        r=cfg.lora_rank, lora_alpha=cfg.lora_alpha, lora_dropout=0.0, target_modules="all-linear"
    )
    return get_peft_model(base, lora)


def scratch(cfg: ModelConfig, tokenizer: Any, causal: bool = False) -> nn.Module:
    """Build a small Llama with random weights; ``causal`` adds the language-model head."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=cfg.hidden,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.heads,
        intermediate_size=max(8, cfg.hidden * 8 // 3 // 8 * 8),
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=False,
    )
    return _from_config(config, cfg, causal)


def checkpoint(cfg: ModelConfig, causal: bool = False, *, empty: bool = False) -> nn.Module:
    """Load the model in a directory or GGUF file.

    Args:
        cfg: names the directory or file.
        causal: add the language-model head.
        empty: keep no weights in memory (device ``meta``), to check that the model loads. Without
            the package accelerate their names and shapes are not compared.

    Raises:
        W2SError: if it does not load, or weights are missing.
    """
    import torch
    from transformers import AutoConfig

    folder, location = folder_of(cfg), _location(cfg)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(**location)
            if getattr(config, "is_encoder_decoder", False):
                raise W2SError(
                    f"{folder} is an encoder-decoder ({config.model_type}); expected a decoder "
                    "or an encoder"
                )
            if (folder / "model.safetensors.index.json").exists():
                read_index(folder / "model.safetensors")  # transformers would follow any path
            # Without accelerate nothing is loaded to "meta"; a GGUF file would be de-quantised.
            no_loader = empty and (is_gguf(folder) or not importlib.util.find_spec("accelerate"))
            if not cfg.pretrained or no_loader:
                with torch.device("meta") if empty else contextlib.nullcontext():
                    return _from_config(config, cfg, causal)
            model, report = _auto(causal).from_pretrained(
                dtype=_dtype(cfg),
                use_safetensors=True,
                output_loading_info=True,
                **({"device_map": {"": "meta"}} if empty else {}),
                **weight_arguments(folder),
                **location,
            )
    except W2SError:
        raise
    # A configuration with values of other types can fail anywhere in transformers.
    except Exception as e:
        raise W2SError(
            f"{folder} is no checkpoint that loads (safetensors only): {one_line(e) or repr(e)}"
        ) from e
    # The pooler is not used; any other missing weight would silently be random.
    missing = sorted(k for k in report["missing_keys"] if not k.startswith("pooler."))
    if missing:
        raise W2SError(
            f"{folder} lacks {len(missing)} weights of its own config, first {missing[0]!r}; "
            "fix the checkpoint, or set pretrained=false for random weights"
        )
    return model


def _location(cfg: ModelConfig) -> dict[str, Any]:
    """Return arguments of ``from_pretrained`` for local files alone."""
    folder = folder_of(cfg)
    _check_kernels(cfg, folder)
    options = {"local_files_only": True, "trust_remote_code": cfg.trust_remote_code}
    return from_pretrained_arguments(folder) | options


def _from_config(config: Any, cfg: ModelConfig, causal: bool = False) -> nn.Module:
    return _auto(causal).from_config(
        config, dtype=_dtype(cfg), trust_remote_code=cfg.trust_remote_code
    )


def _auto(causal: bool) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModelForCausalLM if causal else AutoModel


def folder_of(cfg: ModelConfig) -> Path:
    """Return the checkpoint directory of a model, or its GGUF file.

    Raises:
        W2SError: if ``source`` is neither.
    """
    if cfg.source in EMBEDDED:
        task, function = EMBEDDED[cfg.source].task, EMBEDDED[cfg.source].function
        raise W2SError(
            f"model {cfg.source!r} has to be pretrained first; run the pipeline, or give the "
            f"directory that w2s_fast.tasks.datasets.{task}_lm.{function} wrote"
        )
    folder = Path(cfg.source)
    if is_gguf(folder):
        check_gguf(folder)
        return folder
    if (folder / "adapter_config.json").exists():
        # transformers would add it, and freeze the model below.
        raise W2SError(
            f"{folder} holds an adapter (adapter_config.json); expected a whole model: save what "
            "merge_and_unload() of peft returns, or move the files of the adapter away"
        )
    if not (folder / "config.json").is_file():
        raise W2SError(
            f"model {cfg.source!r} is neither one of {', '.join(BUILT_IN)} nor a directory with a "
            f"config.json or a .gguf file{nearest(cfg.source, BUILT_IN)}"
        )
    return folder


def _check_kernels(cfg: ModelConfig, folder: Path) -> None:
    """Raise if config.json names kernels of the Hugging Face Hub, which are code from elsewhere."""
    if cfg.trust_remote_code or is_gguf(folder):
        return
    try:
        named = next(_hub_kernels(json.loads(read_text(folder / "config.json"))), None)
    except (OSError, ValueError, RecursionError):
        return  # transformers says what is wrong with it
    if named is not None:
        raise W2SError(
            f"{folder / 'config.json'} asks for {named}, which is code of the Hugging Face Hub; "
            "take it out, or set trust_remote_code=true"
        )


def _hub_kernels(values: Any, name: str = "") -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _hub_kernels(value, key if "implementation" in key else name)
    elif name and isinstance(values, str) and "/" in values:
        yield f"{name}={values!r}"


def check_folder(cfg: ModelConfig) -> Path | None:
    """Return the directory or GGUF file of a model with its tokenizer; None for a built-in model.

    Raises:
        W2SError: if ``source`` is no checkpoint, or there is no tokenizer in it.
    """
    if cfg.source in BUILT_IN:
        return None
    folder = folder_of(cfg)
    if not is_gguf(folder) and not any(next(folder.glob(p), None) for p in _VOCABULARIES):
        # transformers would silently build an empty one.
        raise W2SError(
            f"{folder} has no tokenizer: none of {', '.join(_VOCABULARIES)}; save the "
            "tokenizer there too"
        )
    return folder


def architecture(cfg: ModelConfig) -> Any:
    """Return the transformers configuration of a checkpoint; None for a built-in model.

    Raises:
        W2SError: if it cannot be read.
    """
    if cfg.source in BUILT_IN:
        return None
    from transformers import AutoConfig

    folder = folder_of(cfg)
    try:
        return AutoConfig.from_pretrained(**_location(cfg))
    except (OSError, ValueError, KeyError, ImportError) as e:
        file = folder if is_gguf(folder) else folder / "config.json"
        raise W2SError(f"{file} cannot be read: {one_line(e)}") from e


def _dtype(cfg: ModelConfig) -> Any:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[cfg.dtype]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and load reports of transformers inside the block."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
