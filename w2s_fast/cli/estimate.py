"""``w2s-fast plan``: what training the student takes on a machine that is not at hand.

Memory of a device, bytes sent in a step, and the time of a step, from the model's configuration
alone: no weights are read and none are made. Parameters and activations are not guessed from layer
counts: the model runs once on tensors without memory, and what autograd would keep is added up.

P parameters (T of them trained), n processes, b bytes of a weight, g of a gradient:

| part | bytes a device |
|---|---|
| weights | P b; ZeRO-3: P b / n, small ones (below the persistence threshold) whole |
| gradients | T g; ZeRO-2 and 3: T g / n, and the bucket that is being reduced |
| optimizer | 12 T: fp32 copy and two moments (8 T for fp32 at zero_stage=0); ZeRO: / n |
| weights in use | ZeRO-3: 10^9 weights that are needed again soon, and what is being fetched |
| activations | what autograd keeps of one micro-batch |

The last two of these live in forward and backward; in the optimizer's step ZeRO has an fp32 copy of
one group of gradients instead. What is larger counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.models.param_count import Counts, count
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.deepspeed.config import PREFETCH, REDUCE_BUCKET, SUB_GROUP, batch_shape

USAGE = """usage: w2s-fast plan --gpus DxH [options] [--config FILE] [--NAME VALUE ...]

Memory per device, traffic and time of a step of the student, from its config.json alone.

  --gpus DxH      D devices on each of H hosts, such as 8x4
  --model DIR     student.source
  --zero N        student_train.zero_stage
  --tokens N      tokens of a row (default: max_length)
  --tflops X      10^12 operations a second that a device reaches in a matrix product
  --gbytes X      10^9 bytes a second that a device sends to the others
"""
# DeepSpeed's stage3_max_live_parameters
LIVE = 1_000_000_000
_SIZES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Plan:
    """What ``plan`` found; bytes are a device's, traffic is what it sends in a step."""

    counts: Counts
    memory: dict[str, int]
    host_memory: dict[str, int]
    sent: dict[str, int]
    operations: float
    step_s: float | None

    @property
    def total(self) -> int:
        """Bytes of a device."""
        return sum(self.memory.values())


def plan(
    cfg: RunConfig,
    devices: int,
    tokens: int,
    *,
    tflops: float | None = None,
    gbytes: float | None = None,
) -> Plan:
    """Memory, traffic and time of one optimizer step of the student.

    Args:
        cfg: The run; ``student.source`` needs a config.json and nothing else.
        devices: Number of processes, one a device.
        tokens: Tokens of a row.
        tflops, gbytes: Measured ceilings of a device; without both there is no time.

    Raises:
        W2SError: For a batch that the devices do not share evenly, or a model that has no config.
    """
    train, model = cfg.student_train, cfg.student
    rows, micro = batch_shape(train, devices)
    counts = count(model, rows, tokens, train.gradient_checkpointing)
    memory, host = memory_of(counts, train, model.dtype, devices)
    sent = traffic(counts, train, model.dtype, devices, micro)
    work = (8 if train.gradient_checkpointing else 6) * counts.matrix * rows * tokens * micro
    seconds = None
    if tflops and gbytes:
        seconds = work / (tflops * 1e12) + sum(sent.values()) / (gbytes * 1e9)
    return Plan(counts, memory, host, sent, float(work), seconds)


def memory_of(
    c: Counts, train: TrainConfig, dtype: str, n: int
) -> tuple[dict[str, int], dict[str, int]]:
    """(bytes on a device, bytes in its share of the host's memory), by part."""
    b, stage = _SIZES[dtype], train.zero_stage
    g = 4 if stage else b
    part = n if stage else 1
    weights = c.parameters * b
    if stage == 3:
        weights = weights // n + c.small * b
    copies = 12 if stage or dtype != "fp32" else 8
    memory = {"weights": weights}
    memory["gradients"] = c.trained * g // (n if stage > 1 else 1)
    if stage:
        memory["gradient bucket"] = min(c.trained, REDUCE_BUCKET) * b
    memory["optimizer"] = copies * c.trained // part
    working = {"activations": c.activations + 2 * c.transient}
    if stage == 3:
        live = max(LIVE, c.largest) + PREFETCH
        working["weights in use"] = min(live, c.parameters + min(c.parameters, PREFETCH)) * b
    step = 4 * min(c.trained // n, SUB_GROUP if stage == 3 else c.trained) if stage else 0
    memory |= working
    if step > sum(working.values()):
        memory["step, beyond those two"] = step - sum(working.values())
    host: dict[str, int] = {}
    for name, moved in (("optimizer", train.offload_optimizer), ("weights", train.offload_params)):
        if moved != "none":
            host[name] = memory.pop(name) if moved == "cpu" else 0
            memory.pop(name, None)
    return memory, host


def traffic(c: Counts, train: TrainConfig, dtype: str, n: int, micro: int) -> dict[str, int]:
    """Bytes a device sends in a step, by exchange; (n - 1) / n of a tensor in each pass."""
    b = _SIZES[dtype]
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


def main(args: Sequence[str]) -> int:
    """Print the plan of a run."""
    from rich.console import Console

    from w2s_fast.cli.parse import load_config

    own, rest = _split(args)
    devices = _devices(own.get("gpus"))
    cfg = load_config(rest)
    tokens = int(own.get("tokens") or cfg.student_train.max_length)
    rates = {name: float(own[name]) for name in ("tflops", "gbytes") if name in own}
    show(plan(cfg, devices, tokens, **rates), cfg, devices, tokens, Console())
    return 0


def show(p: Plan, cfg: RunConfig, devices: int, tokens: int, console: Any) -> None:
    """Print a plan as tables."""
    from rich.table import Table

    train, c = cfg.student_train, p.counts
    rows, micro = batch_shape(train, devices)
    console.print(
        f"{c.parameters / 1e6:,.1f} M parameters, {c.trained / 1e6:,.1f} M trained, "
        f"{cfg.student.dtype}, zero_stage={train.zero_stage}, {devices} devices; "
        f"{micro} micro-batches of "
        f"{rows} x {tokens} tokens a device and step",
        highlight=False,
    )
    for title, parts in (
        ("memory of a device", p.memory),
        ("memory of the host, a device's share", p.host_memory),
        ("sent by a device in a step", p.sent),
    ):
        if not parts:
            continue
        table = Table("", "MiB", title=title, title_justify="left", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for name, size in parts.items():
            table.add_row(name, f"{size / 2**20:,.1f}")
        table.add_row("total", f"{sum(parts.values()) / 2**20:,.1f}", style="bold")
        console.print(table)
    console.print(f"{p.operations / 1e12:,.2f} x 10^12 operations a device and step")
    if p.step_s is None:
        console.print("time of a step: give --tflops and --gbytes of a device")
    else:
        console.print(f"time of a step: {p.step_s:,.3f} s, exchanges not overlapped")


def _split(args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    own: dict[str, str] = {}
    rest: list[str] = []
    short = {"model": "student.source", "zero": "student_train.zero_stage"}
    left = list(args)
    while left:
        option, eq, value = left.pop(0).partition("=")
        name = option.removeprefix("--")
        if name in ("gpus", "tokens", "tflops", "gbytes", *short):
            if not eq and not left:
                raise W2SError(f"{option} needs a value")
            value = value if eq else left.pop(0)
            if name in short:
                rest += [f"--{short[name]}", value]
            else:
                own[name] = value
        else:
            rest.append(f"{option}{eq}{value}")
    for name in ("tokens", "tflops", "gbytes"):
        try:
            good = float(own.get(name, 1)) > 0
        except ValueError:
            good = False
        if not good:
            raise W2SError(f"--{name} is {own[name]!r}; expected a number above 0")
    return own, rest


def _devices(text: str | None) -> int:
    parts = (text or "").lower().split("x")
    if not text or len(parts) > 2 or not all(p.isdecimal() and int(p) for p in parts):
        raise W2SError(f"--gpus is {text!r}; expected devices x hosts, such as 8x4")
    return int(parts[0]) * (int(parts[1]) if len(parts) == 2 else 1)
