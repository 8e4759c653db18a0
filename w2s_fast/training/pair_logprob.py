"""Log-probabilities and preferences of completion pairs; those of a reference are kept on disk.

A reference is frozen, so its log-probabilities are computed once. Their file is named by a hash
over weights, configuration, tokens and labels, and has a checksum of its numbers.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import get_world
from w2s_fast.errors import W2SError
from w2s_fast.files import content_hash, explain_write_errors, write_bytes
from w2s_fast.losses.pairwise import rewards
from w2s_fast.losses.preference import Preference
from w2s_fast.models.weights import gathered, module_tensors
from w2s_fast.paths import user_path
from w2s_fast.store import StoreWarning
from w2s_fast.training.completion_pairs import CompletionPairs, PairBatch, check_columns
from w2s_fast.training.deepspeed.partition import gathered_in_forward
from w2s_fast.training.engine import forward
from w2s_fast.training.prediction import map_batches

# Of a configuration: where the model came from, not what it computes.
_NOT_CONTENT = ("_name_or_path", "transformers_version")
_NAME, _CHECKSUM = "logprob", "sha256"


def reference_logprob(
    model: nn.Module,
    pairs: CompletionPairs,
    *,
    folder: str | Path | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """Compute the summed log-probabilities of both completions of every pair, or read them.

    Batches are distributed as in ``predict``; the model runs in eval mode and is returned to its
    mode. With a folder the same model and pairs are computed once.

    Args:
        model: a causal language model from ``build_model``, before it is trained.
        pairs: N pairs; a reference that they have does not matter.
        folder: where the numbers are kept, or None. A damaged file is computed again, with a
            ``StoreWarning``.
        batch_size: maximum pairs of one forward.

    Returns:
        (N, 2) float32, nats, for ``CompletionPairs.with_reference``.

    Raises:
        W2SError: if a result is not finite, or the folder cannot be written.
    """
    if folder is None:
        return _logprob(model, pairs, batch_size)
    world = get_world()
    name = f"reference-{_key(model, pairs)[:32]}.safetensors"
    path = user_path(folder, "folder") / name
    stored = _read(path, len(pairs)) if world.is_main_process else None
    known = world.broadcast_object(None if stored is None else stored.tolist())
    if known is not None:
        return np.array(known, dtype=np.float32).reshape(-1, 2)
    logp = _logprob(model, pairs, batch_size)
    if world.is_main_process:
        _write(path, logp)
    return logp


def predict_pairs(
    model: nn.Module, pairs: CompletionPairs, preference: Preference, batch_size: int = 64
) -> np.ndarray:
    """Predict which completion of every pair is better: the softmax of their implicit rewards.

    Args:
        model: a causal language model from ``build_model``.
        pairs: N pairs, with a reference where the preference loss needs one.
        preference: defines the reward.
        batch_size: maximum pairs of one forward.

    Returns:
        (N, 2) float32 probabilities that the first and the second completion are better.

    Raises:
        W2SError: if the pairs lack a reference, or a result is not finite.
    """
    check_columns(pairs, preference, reward_only=True)

    def of_answers(answers: Tensor) -> Tensor:
        return rewards(preference, answers).softmax(1)

    return _map(model, pairs, batch_size, of_answers, "preference")


def _logprob(model: nn.Module, pairs: CompletionPairs, batch_size: int) -> np.ndarray:
    return _map(model, pairs, batch_size, lambda answers: answers[..., 0], "log-probability")


@torch.no_grad()  # not inference_mode: DeepSpeed cannot wait for LoRA weights gathered in it
def _map(
    model: nn.Module, pairs: CompletionPairs, batch_size: int, of_answers: Any, what: str
) -> np.ndarray:
    def compute(batch: PairBatch) -> Tensor:
        return forward(model, batch, of_answers).float()

    with gathered_in_forward(model):
        results = map_batches(model, pairs, batch_size, compute)
    finite = np.isfinite(results).all(1)
    if not finite.all():
        raise W2SError(
            f"the {what} of pair {int(np.flatnonzero(~finite)[0])} is not finite; the model has "
            "diverged, train it with a smaller lr"
        )
    return results


def _key(model: nn.Module, pairs: CompletionPairs) -> str:
    """Return a hash over all that the numbers depend on; a collective call."""
    weights = hashlib.sha256()
    for name, t in module_tensors(model).items():
        with gathered([t]):
            value = t.detach().cpu().contiguous()
            weights.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            weights.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    lm: Any = getattr(model, "lm", model)
    config = lm.config.to_dict() if hasattr(lm, "config") else {}
    config = {k: repr(v) for k, v in config.items() if k not in _NOT_CONTENT}
    return content_hash(
        {"weights": weights.hexdigest(), "config": config, "pairs": pairs.token_digest()}
    )


def _write(path: Path, logp: np.ndarray) -> None:
    from safetensors.numpy import save

    checksum = {_CHECKSUM: hashlib.sha256(logp.tobytes()).hexdigest()}
    with explain_write_errors("reference log-probabilities", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save({_NAME: np.ascontiguousarray(logp)}, metadata=checksum))


def _read(path: Path, n: int) -> np.ndarray | None:
    """Return the stored numbers, None if there are none or the file is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as f:
            logp: np.ndarray = f.get_tensor(_NAME)
            checksum = (f.metadata() or {}).get(_CHECKSUM)
        if checksum == hashlib.sha256(logp.tobytes()).hexdigest() and logp.shape == (n, 2):
            return logp
    except (OSError, SafetensorError):
        pass
    text = f"reference log-probabilities {path} are damaged; computing them again"
    warnings.warn(text, StoreWarning, stacklevel=3)
    return None
