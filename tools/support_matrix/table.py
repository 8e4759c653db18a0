"""The options of every op; ``ENTRIES`` is the whole table. See ``declare.py``."""

from __future__ import annotations

from tools.support_matrix.declare import DTYPES, NO, REFERENCE, YES, Cell, Entry, Option, cell
from tools.support_matrix.teacher import TEACHER_HEADS

__all__ = ["DTYPES", "ENTRIES", "NO", "REFERENCE", "YES", "Cell", "Entry", "Option", "cell"]

_TWICE = Option(
    "second derivative",
    {"twice": True},
    sample={"kinds": ("rest",)},
    unsupported="targets are detached, so it would be silently incomplete",
    error=RuntimeError,
    message="not differentiable twice",
)
_COMPILED = Option("`torch.compile(fullgraph=True)`", {"compiled": True}, {"kinds": ("rest",)})
_HEAD = (
    Option("head with bias", {"bias": True}),
    Option("`memory_mib`: logits in chunks", {"memory_mib": 3 * 17 * 4 / 2**20}),
    Option(
        "`fp32_head_gradient=False`",
        {"fp32_head_gradient": False, "memory_mib": 3 * 17 * 4 / 2**20},
    ),
    Option("frozen head", {"frozen": "head"}),
    Option("frozen hidden states", {"frozen": "hidden"}),
)
_SOFTCAP = Option("`softcap`", {"softcap": 4.0})
_STATS = (
    Option("`return_stats`", {"return_stats": True}),
    Option(
        '`return_stats="differentiable"`',
        {"return_stats": "differentiable"},
        note="the gradient of the statistics is plain PyTorch, in blocks of rows",
    ),
)

_LABELS = (
    Option("hard labels", sample={"kind": "hard"}),
    Option("dense labels", sample={"kind": "dense"}),
    Option("top-k labels", sample={"kind": "sparse"}),
    Option("top-k labels with a residual", sample={"kind": "rest"}),
)
_TERMS = (
    Option("`smoothing`", {"smoothing": 0.1}),
    _SOFTCAP,
    Option("`z_loss`", {"z_loss": 0.02}),
)
_REDUCTIONS = tuple(
    Option(f'`reduction="{name}"`', {"reduction": name}) for name in ("mean", "sum", "none")
)

CROSS_ENTROPY = Entry(
    "cross_entropy and the losses",
    ("w2s_fast.ops.cross_entropy.api:cross_entropy", "w2s_fast.ops.weak_loss:weak_loss"),
    "cross_entropy",
    ("rows", "fixup", "gradient"),
    ("logits", "weak", "aux", "threshold"),  # the last two: rows of their own below
    (
        *_LABELS,
        Option("two classes", {"rule": "none"}, {"v": 2, "kinds": ("hard", "dense", "sparse")}),
        Option("`weight`, with gradients", {"weight": True}),
        Option("`ignore_index`", {"ignore_index": -100}, {"kinds": ("hard",)}),
        Option("no self-target", {"rule": "none"}),
        Option("self-target on every row (`argmax`)", {"rule": "argmax", "aux": 0.4}),
        Option("self-target above the batch median", {"rule": "median", "aux": 0.4}),
        Option("self-target above a threshold", {"rule": "fixed", "aux": 0.4, "threshold": 0.6}),
        Option("`aux` as a tensor", {"rule": "argmax", "aux": "tensor"}),
        Option(
            "two classes, threshold at the weak prior",
            {"rule": "prior", "aux": 0.4},
            {"v": 2, "kinds": ("hard", "dense", "sparse")},
        ),
        Option(
            "two classes, threshold at the median",
            {"rule": "median", "aux": 0.4},
            {"v": 2, "kinds": ("hard", "dense", "sparse")},
        ),
        Option(
            "two classes, given threshold",
            {"rule": "fixed", "aux": 0.4, "threshold": 0.25},
            {"v": 2, "kinds": ("hard", "dense", "sparse")},
        ),
        Option(
            "balanced self-target (`prior`), 3 to 64 classes",
            {"rule": "prior", "aux": 0.4},
            {"kinds": ("hard", "dense")},
        ),
        Option("`focal_gamma`", {"focal_gamma": 2.0}),
        Option("`max_confidence` (window)", {"max_confidence": 0.6}),
        *_TERMS,
        *_REDUCTIONS,
        Option("`inplace`", {"inplace": True, "reduction": "mean"}),
        Option(
            '`inplace` with `reduction="none"`',
            {"inplace": True, "reduction": "none"},
            note="the gradient gets a separate buffer",
        ),
        *_STATS,
        Option(
            "metrics of the losses (`return_sums`)",
            {"return_sums": True},
            note="two classes in the C++ core: by the call itself; else from the statistics",
        ),
        _COMPILED,
        Option(
            "balanced self-target, more than 64 classes",
            {"rule": "prior", "aux": 0.4},
            {"v": 65, "kinds": ("hard",)},
            unsupported="its work grows with the square of the number of classes",
            message="is for 2 to 64 classes",
        ),
        Option(
            "`argmax` with two classes",
            {"rule": "argmax", "aux": 0.4},
            {"v": 2},
            unsupported="the self-target is then the rule `fixed` at probability 0.5",
            message="for more than two classes",
        ),
        Option(
            "`inplace` on leaf logits",
            {"inplace": True, "leaf": True},
            unsupported="the values of a parameter would be lost",
            message="leaf logits",
        ),
        Option(
            "second backward after `inplace`",
            {"inplace": True, "again": True},
            unsupported="the logits were overwritten by their gradient",
            error=RuntimeError,
            message="second backward",
        ),
        _TWICE,
    ),
)

LINEAR_CROSS_ENTROPY = Entry(
    "linear_cross_entropy",
    ("w2s_fast.ops.fused_linear.cross_entropy:linear_cross_entropy",),
    "cross_entropy",
    ("rows", "fixup", "gradient"),
    # The last four have a table of their own.
    ("hidden", "head", "weak", "teacher", "temperature", "divergence", "beta"),
    (
        *_LABELS,
        Option("`weight`, with gradients", {"weight": True}),
        Option("`ignore_index`", {"ignore_index": -100}, {"kinds": ("hard",)}),
        Option("`aux` on every row", {"aux": 0.4}),
        Option("`threshold` at the batch median", {"aux": 0.4, "threshold": "median"}),
        Option("`threshold` given", {"aux": 0.4, "threshold": 0.4}),
        Option(
            "two classes, threshold at the weak prior", {"aux": 0.4}, {"v": 2, "kinds": ("hard",)}
        ),
        Option(
            "balanced self-target (`prior`), more than two classes",
            {"aux": 0.4, "threshold": "prior"},
            {"kinds": ("hard",)},
            unsupported="it needs the logits of all rows at once, which are never stored",
            message="is for 2 to 2 classes",
        ),
        *_TERMS,
        *_REDUCTIONS,
        Option("`positions`", {"positions": True}),
        Option("`main_grad`: the head's gradient is added to a buffer", {"main_grad": True}),
        *_HEAD,
        Option("`return_stats`", {"return_stats": True}),
        _COMPILED,
        _TWICE,
    ),
)

TOPK_LOGPROB = Entry(
    "topk_logprob",
    ("w2s_fast.ops.logprob.api:topk_logprob",),
    "topk_logprob",
    ("rows", "gradient"),
    ("logits", "ids"),
    (
        Option("K classes and the tail; padding"),
        Option("`temperature`", {"temperature": 2.5}),
        _SOFTCAP,
        *_STATS,
        _COMPILED,
        _TWICE,
    ),
)

LINEAR_LOGPROB = Entry(
    "linear_topk_logprob and linear_logprob",
    (
        "w2s_fast.ops.fused_linear.logprob:linear_topk_logprob",
        "w2s_fast.ops.fused_linear.logprob:linear_logprob",
    ),
    "topk_logprob",
    ("rows", "gradient"),
    ("hidden", "head", "ids", "tokens"),
    (
        Option("K classes and the tail", {"topk": True}),
        Option("one token a row"),
        Option("sequences, `mask`", {"mask": True}),
        Option("sequences, `average`", {"average": True}),
        Option("`positions`", {"positions": True}),
        Option("`temperature`", {"temperature": 2.5}),
        _SOFTCAP,
        *_HEAD,
        *_STATS,
        Option(
            "`average` without sequences",
            {"average": True, "flat": True},
            unsupported="there is nothing to average over",
            message="needs sequences",
        ),
        _TWICE,
    ),
)

INFO_NCE = Entry(
    "info_nce",
    ("w2s_fast.ops.info_nce.api:info_nce",),
    "info_nce",
    ("rows",),
    ("queries", "documents", "memory_mib"),
    (
        Option("in-batch negatives, further documents as hard negatives"),
        Option("`positives`", {"positives": True}),
        Option("`temperature`", {"temperature": 0.2}),
        Option(
            "`query_groups` and `document_groups` of duplicates",
            {"groups": True},
        ),
        Option(
            "`negatives`: those of the own group only",
            {"groups": True, "negatives": "same_group"},
        ),
        Option("`margin` above the positive", {"margin": 0.1}),
        Option("`negative_mask`", {"negative_mask": True}),
        Option("`focal_gamma`", {"focal_gamma": 0.5}),
        Option("`symmetric`", {"symmetric": True}, note="similarities are computed twice"),
        Option("`normalize`", {"normalize": True}),
        Option("`weight`, with gradients", {"weight": True}),
        *_REDUCTIONS,
        Option("`memory_mib`: similarities in chunks", {"memory_mib": 3 * 9 * 4 / 2**20}),
        Option("frozen queries", {"frozen": "queries"}),
        Option("frozen documents", {"frozen": "documents"}),
        Option("`return_stats`", {"return_stats": True}),
        Option("`torch.compile(fullgraph=True)`", {"compiled": True}),
        Option(
            "second derivative",
            {"twice": True},
            unsupported="backward returns gradients that are constants",
            error=RuntimeError,
            message="not differentiable twice",
        ),
    ),
)

QUANTILE = Entry(
    "quantile, kth_value, top_fraction_mask",
    (
        "w2s_fast.ops.quantile.api:quantile",
        "w2s_fast.ops.quantile.api:kth_value",
        "w2s_fast.ops.quantile.api:top_fraction_mask",
    ),
    "quantile",
    (),
    ("scores", "q", "k", "fraction"),
    (
        Option("`quantile`", {"which": "quantile"}, phases=("quantile",)),
        Option("`quantile`, `keep`", {"which": "quantile", "keep": True}, phases=("quantile",)),
        Option("`quantile`, rank as a tensor", {"which": "quantile", "tensor": True},
               phases=("quantile",)),
        Option("`kth_value`", {"which": "kth_value"}, phases=("kth_value",)),
        Option("`kth_value`, `keep`", {"which": "kth_value", "keep": True}, phases=("kth_value",)),
        Option("`top_fraction_mask`", {"which": "top_fraction_mask"},
               phases=("kth_value", "count_at", "threshold_mask")),
        Option("`top_fraction_mask`, `keep`", {"which": "top_fraction_mask", "keep": True},
               phases=("kth_value", "count_at", "threshold_mask")),
        Option("over a process `group`", {"which": "quantile", "group": True},
               phases=("histogram", "successor")),
        Option("`top_fraction_mask` over a process `group`",
               {"which": "top_fraction_mask", "group": True},
               phases=("histogram", "successor", "count_at", "threshold_mask")),
        Option("integer scores", {"which": "quantile", "integer": True},
               unsupported="ranks are of floating point scores; convert first",
               message="floating point"),
        Option("gradients", {"which": "quantile", "gradient": True},
               unsupported="order statistics are detached",
               error=RuntimeError, message="does not require grad"),
    ),
)  # fmt: skip

DISTILLATION = Entry(
    "distillation: ForwardKL, ReverseKL, JSD",
    (
        "w2s_fast.losses.distillation:Distillation.__call__",
        "w2s_fast.losses.distillation:Distillation.linear",
    ),
    "topk_logprob",
    ("rows", "gradient"),
    ("logits", "hidden", "head", "teacher", "memory_mib", "fp32_head_gradient", "positions"),
    (
        Option("from logits"),
        Option("from hidden states and a head", {"linear": True}),
        Option("from hidden states, with bias", {"linear": True, "bias": True}),
        Option("temperature and `rescale`", {"temperature": 2.0, "rescale": True}),
        Option("`weight`", {"weight": True}),
        _SOFTCAP,
        Option("dense teacher, `ForwardKL`", {"dense": True, "only": "forward_kl"}),
        Option(
            "dense teacher, `ReverseKL` and `JSD`",
            {"dense": True, "only": "reverse_kl"},
            unsupported="only KL(teacher || student) is a cross-entropy; `pack_topk` packs a "
            "teacher",
            message="pack_topk",
        ),
    ),
)

PREFERENCE = Entry(
    "preference losses",
    ("w2s_fast.losses.preference:Preference.__call__",),
    "",
    (),
    ("first", "second"),
    (
        Option("`dpo`, `dpo_norm`, `ipo`, `simpo`, `orpo`, `cpo`, `kto`, `bradley_terry`, `wspo`"),
        Option("soft preferences `q`", {"q": True}),
        Option("`weight`", {"weight": True}),
    ),
)

POLICY = Entry(
    "policy losses",
    ("w2s_fast.losses.policy:PolicyLoss.__call__",),
    "",
    (),
    ("logp", "advantage"),
    (
        Option("`ppo`, `grpo`, `dr_grpo`, `gspo`, `cispo`"),
        Option("`old` policy", {"old": True}),
        Option("`reference` policy, `kl_coef`", {"reference": True}),
        Option("`entropy` bonus", {"entropy": True}),
        Option("`mask`", {"mask": True}),
        Option("`weight`", {"weight": True}),
    ),
)

ENTRIES = (
    CROSS_ENTROPY,
    LINEAR_CROSS_ENTROPY,
    TEACHER_HEADS,
    TOPK_LOGPROB,
    LINEAR_LOGPROB,
    INFO_NCE,
    QUANTILE,
    DISTILLATION,
    PREFERENCE,
    POLICY,
)
