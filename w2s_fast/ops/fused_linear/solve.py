"""One fused-head loss call.

A chunk of rows goes through the same row kernels as dense logits: one pass turns it into its own
gradient, in place. A threshold over the whole batch is the exception: it is known only after the
last chunk. Two ways, both exact:

- hard labels, or top-k labels without a residual (on a CPU, of mass 1): the gate moves a few
  entries of a row and little else. All gates are taken as open, and the rows that turn out closed
  are corrected afterwards, see ``late_gate.py``.
- every other target: the gate reaches all classes. A first pass over the chunks computes the
  scores, 2 N V D operations more.

A batch that fits into one chunk needs neither: it is a dense call between its GEMMs.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.algorithm import (
    BATCH_RULES,
    batch_threshold,
    check_spec,
    gradient_scale,
    normaliser,
    solve,
    total_loss,
)
from w2s_fast.ops.fused_linear import gemm
from w2s_fast.ops.fused_linear.chunks import (
    Gradients,
    HeadInputs,
    NeedsGrad,
    chunk_count,
    chunk_inputs,
    chunks,
    fits,
    pass_over_rows,
    row_kernels,
)
from w2s_fast.ops.fused_linear.late_gate import close_gates, fixes_afterwards
from w2s_fast.ops.fused_linear.teacher import heads as teacher_heads
from w2s_fast.ops.fused_linear.teacher.heads import Slopes
from w2s_fast.ops.loss_call import LossResult, LossSpec, RowCall, Stat, new_record
from w2s_fast.ops.targets import LossInputs, check_labels


def solve_linear(
    x: HeadInputs,
    p: LossInputs,
    spec: LossSpec,
    needs: NeedsGrad,
    mean: bool,
    keep_logits: bool = False,
) -> LossResult:
    """Compute loss, record and gradients of one call; ``p`` has the targets and a shape.

    ``keep_logits`` leaves them in the result where one chunk holds them all and gradients come
    later.
    """
    check_spec(spec, p)
    check_labels(p)  # a chunk would number its rows from 0
    own_pass = x.teacher is not None and x.teacher.has_own_pass
    if fits(x, p) and not own_pass:
        return _solve_at_once(x, p, spec, needs, mean, keep_logits)
    late = spec.threshold is None and spec.rule in BATCH_RULES
    kernels = row_kernels(x)
    if late and not fixes_afterwards(p, spec, needs, kernels.FIXES_ANY_MASS):
        spec = dataclasses.replace(spec, threshold=threshold_from_scores(x, p, spec))
        late = False
    total = normaliser(p)
    call = RowCall(
        p, spec, *new_record(p), spec.row_rule(p.logits.shape[1]), spec.threshold_tensor(p),
        scale=gradient_scale(total, mean),
    )  # fmt: skip
    if late and p.ids is not None:
        call.topk_diffs = torch.empty(p.ids.shape, dtype=p.accumulator, device=p.ids.device)
    parts = chunk_count(x, p) + (p.width + 1 if late else 0)
    grads = Gradients(x, needs, parts, p.some_counted() if needs.head else None)
    slopes = Slopes(x.teacher)
    for chunk in chunks(x, p):
        z = chunk.inputs.logits
        pass_over_rows(call, chunk, z if needs.any else None, kernels)
        if needs.any:
            grads.add(z, chunk.rows)
        slopes.add(chunk.rows, chunk.inputs.probs)
        del chunk, z  # before the next logits are allocated
    if late:
        call.threshold = batch_threshold(p, spec.rule, call.stats)
        close_gates(x, call, grads, kernels.FIXES_ANY_MASS)
    loss = total_loss(p, call.stats[Stat.LOSS], total if mean else None)
    return LossResult(
        call.stats, call.index, loss, total, call.threshold, grads.result(), slopes=slopes.values
    )


def _solve_at_once(
    x: HeadInputs, p: LossInputs, spec: LossSpec, needs: NeedsGrad, mean: bool, keep_logits: bool
) -> LossResult:
    every = slice(0, p.logits.shape[0])
    buffer = gemm.logits_buffer(x.hidden, x.head, every.stop)
    z = gemm.logits_chunk(x.hidden, x.head, x.bias, buffer, x.alpha)
    spec = dataclasses.replace(spec, record=True)
    result = solve(chunk_inputs(x, p, every, z), spec, z if needs.any else None, mean)
    grads = Gradients(x, needs, 1, p.some_counted() if needs.head else None)
    if needs.any and every.stop:
        grads.add(z, every)
    return dataclasses.replace(result, grads=grads.result(), logits=z if keep_logits else None)


def threshold_from_scores(x: HeadInputs, p: LossInputs, spec: LossSpec) -> Tensor:
    """Compute the logits for their scores alone and return the batch threshold."""
    scored, student = p, x
    if x.teacher is not None:
        # Scores are the student's: any label will do, and no term of the teacher is computed.
        any_label = torch.zeros((x.hidden.shape[0], 1), dtype=torch.int64, device=x.hidden.device)
        scored, student = p._replace(ids=any_label, ignore_index=-1), x._replace(teacher=None)
        if p.logits.shape[1] == 2:  # the prior of two classes is a mean of the target
            p = p._replace(probs=teacher_heads.probabilities(x.teacher))
    call = RowCall(scored, LossSpec(softcap=spec.softcap, entropy=False), *new_record(p))
    for chunk in chunks(student, scored):
        pass_over_rows(call, chunk)
    return batch_threshold(p, spec.rule, call.stats)
