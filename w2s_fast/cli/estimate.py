"""Estimate memory, traffic and time of one optimizer step from the model's configuration alone.

No weights are read or allocated. Parameters and activations are not guessed from layer counts: the
model runs once on tensors without memory, and what autograd would save is summed.

P parameters (T of them trained), n processes, b bytes of a weight:

| part | bytes per device |
|---|---|
| weights | P b; ZeRO-3: P b / n, small ones (below the persistence threshold) whole |
| gradients | 4 T, summed in fp32; ZeRO-2 and 3: 4 T / n, and the bucket being reduced |
| optimizer | 12 T: fp32 copy and two moments (8 T for fp32 at zero_stage=0); ZeRO: / n |
| average of weights | 4 T / n, also without ZeRO; 8 T / n with interpolation |
| weights in use | ZeRO-3: up to 10^9 gathered weights, and those being prefetched |
| activations | what autograd saves for one micro-batch |

The last two exist in forward and backward; in the optimizer's step ZeRO has an fp32 copy of one
group of gradients instead, and without ZeRO the 16-bit gradients of a micro-batch (T b) exist when
its backward ends. The larger of the two counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from w2s_fast.config import RunConfig
from w2s_fast.models.param_count import Counts, count
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.deepspeed.config import PREFETCH, REDUCE_BUCKET, SUB_GROUP

_MAX_LIVE = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class StepEstimate:
    """The estimate of one optimizer step, per device.

    Attributes:
        counts: Counts of the model.
        memory: Bytes on the device, by part.
        host_memory: Bytes of the device's share of host memory, by part.
        sent: Bytes sent, by exchange.
        operations: Floating-point operations.
        step_s: Seconds, without overlap of exchanges; None if the rates are unknown.
    """

    counts: Counts
    memory: dict[str, int]
    host_memory: dict[str, int]
    sent: dict[str, int]
    operations: float
    step_s: float | None

    @property
    def total(self) -> int:
        """Bytes on a device."""
        return sum(self.memory.values())


def estimate_step(
    cfg: RunConfig,
    devices: int,
    tokens: int,
    *,
    tflops: float | None = None,
    gbytes: float | None = None,
) -> StepEstimate:
    """Estimate one optimizer step of the student.

    Args:
        cfg: The run; of ``student.source`` only config.json is read.
        devices: Number of processes, one per device.
        tokens: Tokens per row.
        tflops: Measured 10^12 operations per second of a device in matrix products.
        gbytes: Measured 10^9 bytes per second that a device sends; without both, no time.

    Raises:
        W2SError: The batch does not split evenly over the devices, or the model has no config.
    """
    train, model = cfg.student_train, cfg.student
    rows, micro = train.batch_shape(devices)
    counts = count(model, rows, tokens, train.gradient_checkpointing)
    memory, host = memory_by_part(counts, train, model.dtype, devices)
    sent = traffic_by_exchange(counts, train, model.dtype, devices, micro)
    work = (8 if train.gradient_checkpointing else 6) * counts.matrix * rows * tokens * micro
    seconds = None
    if tflops and gbytes:
        seconds = work / (tflops * 1e12) + sum(sent.values()) / (gbytes * 1e9)
    return StepEstimate(counts, memory, host, sent, float(work), seconds)


def memory_by_part(
    c: Counts, train: TrainConfig, dtype: str, n: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Return bytes on a device and bytes of its share of host memory, each by part."""
    b, stage = _BYTES[dtype], train.zero_stage
    shards = n if stage else 1
    weights = c.parameters * b
    if stage == 3:
        weights = weights // n + c.small * b
    copies = 12 if stage or dtype != "fp32" else 8
    memory = {"weights": weights}
    memory["gradients"] = c.trained * 4 // (n if stage > 1 else 1)
    if stage:
        memory["gradient bucket"] = min(c.trained, REDUCE_BUCKET) * b
    memory["optimizer"] = copies * c.trained // shards
    mixed = train.interpolation < 1  # with the initial weights
    if averaged := bool(train.average_frac or train.ema_decay or mixed):
        memory["average of weights"] = 4 * (averaged + mixed) * c.trained // n
    working = {"activations": c.activations + 2 * c.transient}
    if stage == 3:
        live = max(_MAX_LIVE, c.largest) + PREFETCH
        working["weights in use"] = min(live, c.parameters + min(c.parameters, PREFETCH)) * b
    if stage:
        later = 4 * min(c.trained // n, SUB_GROUP if stage == 3 else c.trained)
        part = "step, beyond those two"
    else:
        later, part = c.trained * b if b < 4 else 0, "16-bit gradients, beyond activations"
    memory |= working
    if later > sum(working.values()):
        memory[part] = later - sum(working.values())
    host: dict[str, int] = {}
    for name, moved in (("optimizer", train.offload_optimizer), ("weights", train.offload_params)):
        if moved != "none":
            host[name] = memory.pop(name) if moved == "cpu" else 0
            memory.pop(name, None)
    return memory, host


def traffic_by_exchange(
    c: Counts, train: TrainConfig, dtype: str, n: int, micro: int
) -> dict[str, int]:
    """Return the bytes that a device sends in a step: (n - 1) / n of a tensor per pass."""
    b = _BYTES[dtype]
    share = (n - 1) / n
    if train.zero_stage == 3:
        return {
            "gather weights": int(2 * micro * share * c.parameters * b),
            "scatter gradients": int(micro * share * c.trained * b),
        }
    if train.zero_stage:
        rounds = micro if train.zero_stage == 2 else 1
        return {
            "scatter gradients": int(rounds * share * c.trained * b),
            "gather weights": int(share * c.trained * b),
        }
    return {"sum gradients": int(2 * share * c.trained * 4)}
