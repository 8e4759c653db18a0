"""Build the model of a supervisor or student, and load its tokenizer.

A model of kind ``classification`` maps ``(input_ids, attention_mask[, token_type_ids])`` to logits
(B, C) and has ``n_classes``. Weights are safetensors only; nothing is downloaded and no
pickle is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from w2s_fast.errors import W2SError, nearest, one_line
from w2s_fast.models.backbone import (
    BUILT_IN,
    ModelConfig,
    check_folder,
    checkpoint,
    quiet,
    scratch,
    with_lora,
)
from w2s_fast.models.checkpoint_source import from_pretrained_arguments
from w2s_fast.models.weights import shape_of

if TYPE_CHECKING:
    from torch import nn

KINDS = ("classification", "preference", "generation")


def load_tokenizer(cfg: ModelConfig, fallback: Any = None) -> Any:
    """Load the tokenizer of a model.

    Args:
        cfg: a directory or GGUF file has its own tokenizer.
        fallback: transformers tokenizer for models without one (``scratch``, ``bow``).

    Raises:
        W2SError: if there is none.
    """
    if cfg.source in BUILT_IN:
        if fallback is None:
            raise W2SError(
                f"model {cfg.source!r} has no tokenizer of its own; give one, for example of "
                "train_tokenizer"
            )
        return fallback
    from transformers import AutoTokenizer

    folder = check_folder(cfg)
    assert folder is not None
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                **from_pretrained_arguments(folder),
                local_files_only=True,
                trust_remote_code=cfg.trust_remote_code,
            )
    except Exception as e:  # tokenizers raises plain ones
        raise W2SError(f"{folder} has no tokenizer that loads: {one_line(e) or repr(e)}") from e
    tokenizer.padding_side = "right"
    return tokenizer


def build_model(
    cfg: ModelConfig,
    n_classes: int,
    tokenizer: Any,
    seed: int,
    kind: str = "classification",
    *,
    empty: bool = False,
    projection: int = 0,
    prefixes: tuple[float, ...] = (),
    prefix: float = 1.0,
) -> nn.Module:
    """Build a model with a newly initialised head, on the CPU.

    Args:
        cfg: what to build.
        n_classes: C, at least 2.
        tokenizer: from ``load_tokenizer``; defines the vocabulary and the padding id.
        seed: of all random weights; the global random state is neither used nor changed.
        kind: of the task. ``classification``: C logits a text. ``preference``: C = 2 completions an
            example, each with a score, as in a reward model (Burns et al. 2023, Sec. 4).
            ``generation``: a causal language model with its own head; C and ``pooling`` are not
            used.
        projection: width of a projection between the features and the head of a classifier, see
            ``Projection``; 0: none.
        prefixes, prefix: shares of the head's inputs that classify, and the one that predicts, see
            ``PrefixHead``; (): none.
        empty: leave the weights of a checkpoint on disk: checks that the model can be built.

    Returns:
        Module with ``forward(input_ids, attention_mask, token_type_ids=None) -> (B, C)`` fp32
        logits and ``n_classes``. Preference models take 2 B rows, see ``encode``; generation tasks
        return a ``GenerativeModel``.

    Raises:
        W2SError: if a directory or GGUF file is no checkpoint, has weights missing, or does not fit
            the tokenizer or the kind.
    """
    import torch

    from w2s_fast.models.causal_lm import GenerativeModel
    from w2s_fast.models.classifier import BagOfWords, Classifier, Projection

    check_model_kind(cfg, n_classes, kind)
    causal, n_candidates = kind == "generation", 2 if kind == "preference" else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if cfg.source == "bow":
            return BagOfWords(len(tokenizer), n_classes, n_candidates)
        if cfg.source == "scratch":
            base: Any = scratch(cfg, tokenizer, causal)
        else:
            base = checkpoint(cfg, causal, empty=empty)
        if cfg.lora_rank:
            base = _with_lora_backbone(base, cfg) if causal else with_lora(base, cfg)
        rows = shape_of(base.get_input_embeddings().weight)[0]
        if len(tokenizer) > rows:
            raise W2SError(
                f"the tokenizer has {len(tokenizer)} tokens, the model {cfg.source!r} embeds "
                f"{rows}; use the tokenizer of that checkpoint"
            )
        if causal:
            return GenerativeModel(base)
        return Classifier(
            base,
            n_classes,
            cfg.pooling,
            cfg.head_init,
            frozen=cfg.freeze == "base",
            n_candidates=n_candidates,
            projection=Projection(base.config.hidden_size, projection) if projection else None,
            prefixes=prefixes,
            prefix=prefix,
        )


def check_model_kind(cfg: ModelConfig, n_classes: int, kind: str) -> None:
    """Check that a model can be built for a kind of task, see ``build_model``.

    Raises:
        W2SError: The kind is unknown, or does not fit the model or the number of classes.
    """
    if kind not in KINDS:
        raise W2SError(
            f"kind is {kind!r}; expected one of {', '.join(KINDS)}{nearest(kind, KINDS)}"
        )
    if n_classes < 2 or (kind == "preference" and n_classes > 2):
        expected = "2 completions" if kind == "preference" else "at least 2 classes"
        raise W2SError(f"n_classes is {n_classes}; expected {expected}")
    if kind == "generation" and (cfg.source == "bow" or cfg.freeze != "none"):
        raise W2SError(
            f"source={cfg.source!r} with freeze={cfg.freeze!r} cannot generate text; expected a "
            "language model and freeze='none'"
        )


def _with_lora_backbone(lm: Any, cfg: ModelConfig) -> Any:
    """Add LoRA to the backbone alone: the head, which may be tied to the embedding, is frozen."""
    lm.requires_grad_(False)
    setattr(lm, lm.base_model_prefix, with_lora(getattr(lm, lm.base_model_prefix), cfg))
    return lm
