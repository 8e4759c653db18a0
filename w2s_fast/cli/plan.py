"""``w2s-fast plan``: print an estimate of the student's training on machines not at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from w2s_fast.cli.parse import asks_for_help, load_config, take_options
from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError

if TYPE_CHECKING:
    from rich.console import Console

    from w2s_fast.cli.estimate import StepEstimate

USAGE = """usage: w2s-fast plan --gpus DxH [options] [--config FILE] [--NAME VALUE ...]

Estimate memory per device, traffic and time of a step of the student from its config.json alone.

  --gpus DxH      D devices on each of H hosts, such as 8x4
  --model DIR     student.source, which has to be a checkpoint
  --zero N        student_train.zero_stage
  --tokens N      tokens per row (default: max_length)
  --tflops X      10^12 operations per second that a device reaches in matrix products
  --gbytes X      10^9 bytes per second that a device sends to the others
"""
_SHORT_FORMS = {"model": "student.source", "zero": "student_train.zero_stage"}
_NUMBERS = ("tokens", "tflops", "gbytes")


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    if not args or asks_for_help(args):
        print(USAGE, end="")
        return 0 if args else 2
    own, rest = take_options(args, values=("gpus", *_NUMBERS, *_SHORT_FORMS))
    rest += [f"--{name}={own[short]}" for short, name in _SHORT_FORMS.items() if short in own]
    devices, numbers = n_devices(own.get("gpus")), _positive_numbers(own)
    cfg = load_config(rest)
    tokens = int(numbers.pop("tokens", cfg.student_train.max_length))
    from rich.console import Console

    from w2s_fast.cli.estimate import estimate_step

    estimate = estimate_step(cfg, devices, tokens, **numbers)
    print_estimate(estimate, cfg, devices, tokens, Console())
    return 0


def print_estimate(
    estimate: StepEstimate, cfg: RunConfig, devices: int, tokens: int, console: Console
) -> None:
    """Print an estimate as tables."""
    from rich.table import Table

    train, counts = cfg.student_train, estimate.counts
    rows, micro = train.batch_shape(devices)
    console.print(
        f"{counts.parameters / 1e6:,.1f} M parameters, {counts.trained / 1e6:,.1f} M trained, "
        f"{cfg.student.dtype}, zero_stage={train.zero_stage}, {devices} devices; {micro} "
        f"micro-batches of {rows} x {tokens} tokens per device and step",
        highlight=False,
    )
    for title, parts in (
        ("memory per device", estimate.memory),
        ("host memory per device", estimate.host_memory),
        ("sent per device and step", estimate.sent),
    ):
        if not parts:
            continue
        table = Table("", "MiB", title=title, title_justify="left", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for name, size in parts.items():
            table.add_row(name, f"{size / 2**20:,.1f}")
        table.add_row("total", f"{sum(parts.values()) / 2**20:,.1f}", style="bold")
        console.print(table)
    console.print(f"{estimate.operations / 1e12:,.2f} x 10^12 operations per device and step")
    if estimate.step_s is None:
        console.print("time of a step: give --tflops and --gbytes of a device")
    else:
        console.print(f"time of a step: {estimate.step_s:,.3f} s, exchanges not overlapped")


def _positive_numbers(own: Mapping[str, str]) -> dict[str, float]:
    numbers = {}
    for name in _NUMBERS:
        if name in own:
            try:
                numbers[name] = float(own[name])
            except ValueError:
                numbers[name] = 0.0
            whole = "whole " if name == "tokens" else ""
            if not 0 < numbers[name] < float("inf") or whole and numbers[name] % 1:
                raise W2SError(f"--{name} is {own[name]!r}; expected a {whole}number above 0")
    return numbers


def n_devices(text: str | None) -> int:
    """Return the number of devices of ``DxH`` or ``D``."""
    parts = (text or "").lower().split("x")
    if not text or len(parts) > 2 or not all(p.isdecimal() and int(p) for p in parts):
        raise W2SError(f"--gpus is {text!r}; expected devices x hosts, such as 8x4")
    return int(parts[0]) * (int(parts[1]) if len(parts) == 2 else 1)
