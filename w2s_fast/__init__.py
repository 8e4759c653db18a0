"""w2s_fast: a fast training core for weak-to-strong generalization.

Public names load on first use, so ``import w2s_fast`` costs nothing and pulls in neither torch nor
transformers. Everything named in ``__all__`` is importable from here and stays.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from w2s_fast.version import __version__

if TYPE_CHECKING:
    from w2s_fast.comparison.data_frame import to_dataframe
    from w2s_fast.config import RunConfig
    from w2s_fast.errors import W2SError
    from w2s_fast.integrations.patching import patch, unpatch
    from w2s_fast.losses import make_loss
    from w2s_fast.models import ModelConfig
    from w2s_fast.models.lm_head import LMHeadLoss
    from w2s_fast.ops.balanced.api import balanced_bias
    from w2s_fast.ops.cross_entropy.api import cross_entropy
    from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
    from w2s_fast.ops.fused_linear.logprob import linear_logprob, linear_topk_logprob
    from w2s_fast.ops.fused_linear.teacher.heads import TeacherHead
    from w2s_fast.ops.fused_linear.topk import linear_topk_ids
    from w2s_fast.ops.info_nce.api import info_nce
    from w2s_fast.ops.info_nce.mixing import mix_hard_negatives
    from w2s_fast.ops.logprob.api import topk_logprob
    from w2s_fast.ops.pack_topk import pack_topk
    from w2s_fast.ops.quantile.api import kth_value, quantile, top_fraction_mask
    from w2s_fast.ops.targets import SparseTargets
    from w2s_fast.ops.vocab_parallel.api import vocab_parallel_cross_entropy, vocab_parallel_logprob
    from w2s_fast.pipeline import run
    from w2s_fast.supervisors import SupervisorsConfig
    from w2s_fast.sweeps import SweepConfig, sweep
    from w2s_fast.tasks import TaskConfig
    from w2s_fast.training import TrainConfig

__all__ = [
    "LMHeadLoss",
    "ModelConfig",
    "RunConfig",
    "SparseTargets",
    "SupervisorsConfig",
    "SweepConfig",
    "TaskConfig",
    "TeacherHead",
    "TrainConfig",
    "W2SError",
    "__version__",
    "balanced_bias",
    "cross_entropy",
    "info_nce",
    "kth_value",
    "linear_cross_entropy",
    "linear_logprob",
    "linear_topk_ids",
    "linear_topk_logprob",
    "make_loss",
    "mix_hard_negatives",
    "pack_topk",
    "patch",
    "quantile",
    "run",
    "sweep",
    "to_dataframe",
    "top_fraction_mask",
    "topk_logprob",
    "unpatch",
    "vocab_parallel_cross_entropy",
    "vocab_parallel_logprob",
]

_HOMES = {  # public name -> the module that defines it
    "LMHeadLoss": "w2s_fast.models.lm_head",
    "ModelConfig": "w2s_fast.models",
    "RunConfig": "w2s_fast.config",
    "SparseTargets": "w2s_fast.ops.targets",
    "SupervisorsConfig": "w2s_fast.supervisors",
    "SweepConfig": "w2s_fast.sweeps.sweep_config",
    "TaskConfig": "w2s_fast.tasks",
    "TeacherHead": "w2s_fast.ops.fused_linear.teacher.heads",
    "TrainConfig": "w2s_fast.training",
    "W2SError": "w2s_fast.errors",
    "balanced_bias": "w2s_fast.ops.balanced.api",
    "cross_entropy": "w2s_fast.ops.cross_entropy.api",
    "info_nce": "w2s_fast.ops.info_nce.api",
    "kth_value": "w2s_fast.ops.quantile.api",
    "linear_cross_entropy": "w2s_fast.ops.fused_linear.cross_entropy",
    "linear_logprob": "w2s_fast.ops.fused_linear.logprob",
    "linear_topk_ids": "w2s_fast.ops.fused_linear.topk",
    "linear_topk_logprob": "w2s_fast.ops.fused_linear.logprob",
    "make_loss": "w2s_fast.losses",
    "mix_hard_negatives": "w2s_fast.ops.info_nce.mixing",
    "pack_topk": "w2s_fast.ops.pack_topk",
    "patch": "w2s_fast.integrations.patching",
    "quantile": "w2s_fast.ops.quantile.api",
    "run": "w2s_fast.pipeline",
    "sweep": "w2s_fast.sweeps.run_sweep",
    "to_dataframe": "w2s_fast.comparison.data_frame",
    "top_fraction_mask": "w2s_fast.ops.quantile.api",
    "topk_logprob": "w2s_fast.ops.logprob.api",
    "unpatch": "w2s_fast.integrations.patching",
    "vocab_parallel_cross_entropy": "w2s_fast.ops.vocab_parallel.api",
    "vocab_parallel_logprob": "w2s_fast.ops.vocab_parallel.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
