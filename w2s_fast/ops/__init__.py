"""The fused ops. ``OPS`` names each one; tests and benchmarks are driven by that table."""

from w2s_fast.ops.cross_entropy.api import OP as CROSS_ENTROPY
from w2s_fast.ops.dispatch import Op, backends_info, use_backend
from w2s_fast.ops.info_nce.api import OP as INFO_NCE
from w2s_fast.ops.logprob.api import OP as TOPK_LOGPROB
from w2s_fast.ops.quantile.api import OP as QUANTILE

OPS: dict[str, Op] = {op.name: op for op in (CROSS_ENTROPY, INFO_NCE, QUANTILE, TOPK_LOGPROB)}

__all__ = ["OPS", "Op", "backends_info", "use_backend"]
