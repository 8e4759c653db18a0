"""The options of teachers that are sums of heads, in ``linear_cross_entropy``."""

from __future__ import annotations

from tools.support_matrix.declare import Entry, Option

_PASS = "the record by the backend's kernels, the divergence by PyTorch's own operations"
_DIVERGENCES = (
    "forward_kl", "reverse_kl", "jsd", "jeffreys", "total_variation", "hellinger", "pearson"
)  # fmt: skip
_CHUNKS = 3 * 17 * 4 / 2**20

TEACHER_HEADS = Entry(
    "teacher heads of linear_cross_entropy",
    ("w2s_fast.ops.fused_linear.cross_entropy:linear_cross_entropy",),
    "cross_entropy",
    ("rows", "gradient"),
    (
        "hidden", "head", "weak", "positions", "fp32_head_gradient", "ignore_index", "return_stats",
        "z_loss",
    ),
    (
        Option("`teacher`, cross-entropy", {"teacher": True}),
        *(
            Option(f'`divergence="{name}"`', {"divergence": name}, note=_PASS)
            for name in _DIVERGENCES
        ),
        Option("`beta`", {"divergence": "jsd", "beta": 0.1}, note=_PASS),
        Option("`temperature`", {"temperature": 2.5}),
        Option("learned scale", {"learned": True}, note=_PASS),
        Option("`weight`, with gradients", {"weight": True}),
        Option("`aux`, `threshold` at the batch median", {"aux": 0.4, "threshold": "median"}),
        Option("`smoothing`", {"smoothing": 0.1}),
        Option("`softcap`", {"softcap": 4.0}),
        Option("student's head with `bias`", {"bias": True}),
        Option("`main_grad`: the head's gradient is added to a buffer", {"main_grad": True}),
        Option("`memory_mib`: logits in chunks", {"memory_mib": _CHUNKS}),
        *(Option(f'`reduction="{r}"`', {"reduction": r}) for r in ("mean", "sum", "none")),
        Option("`torch.compile(fullgraph=True)`", {"compiled": True}),
        Option(
            "`smoothing` with another divergence",
            {"divergence": "jsd", "smoothing": 0.1},
            unsupported="label smoothing mixes the target of a cross-entropy",
            message="label smoothing is for the cross-entropy",
        ),
        Option(
            "teacher with another vocabulary",
            {"vocabulary": 19},
            unsupported="classes would have no counterpart",
            message="expected one vocabulary",
        ),
        Option(
            "second derivative",
            {"twice": True},
            unsupported="targets are detached, so it would be silently incomplete",
            error=RuntimeError,
            message="not differentiable twice",
        ),
    ),
)  # fmt: skip
