"""``w2s-fast doctor``: show what this machine offers, and why a kernel is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from w2s_fast.cli.parse import asks_for_help
from w2s_fast.errors import W2SError
from w2s_fast.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "rich")
_EXTRAS = {  # package -> what it is for
    "triton": "kernels on CUDA",
    "datasets": "Hugging Face data sets by name",
    "deepspeed": "training on several devices",
    "peft": "adapters (LoRA)",
    "accelerate": "its loops with these losses",
    "trl": "its trainers with these losses",
    "lightning": "its trainer with these losses",
}
_GPU_BACKENDS = ("triton", "cuda")  # not expected on a machine without a GPU


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        section: Heading of the line.
        name: What was examined.
        value: The result.
        good: True if fine, False if missing but expected, None for plain information.
    """

    section: str
    name: str
    value: str
    good: bool | None = None


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    if args:
        print("usage: w2s-fast doctor")
        if asks_for_help(args):
            return 0
        raise W2SError(f"unexpected argument {args[0]!r}; doctor takes none")
    from rich.console import Console

    print_findings([*_versions(), *_kernels(), *_machine(), *_extras()], Console())
    return 0


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print the findings by section."""
    from rich.markup import escape

    symbols = {True: "[green]✓[/]", False: "[red]✗[/]", None: " "}
    section = ""
    for f in findings:
        if f.section != section:
            section = f.section
            console.print(f"\n[bold]{section}[/]")
        line = f" {symbols[f.good]} {f.name:<22} {escape(f.value)}"
        console.print(line, highlight=False, soft_wrap=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> list[Finding]:
    findings = [
        Finding("versions", "w2s_fast", __version__),
        Finding("versions", "python", platform.python_version()),
    ]
    for name in _PACKAGES:
        version = _version(name)
        findings.append(Finding("versions", name, version or "not installed", version is not None))
    return findings


def _kernels() -> list[Finding]:
    import torch

    from w2s_fast.ops import backends_info, native, native_cuda
    from w2s_fast.ops.fused_linear.gemm import has_kernels

    findings = []
    for name, state in backends_info().items():
        expected = torch.cuda.is_available() or name not in _GPU_BACKENDS
        good = True if state == "ok" else False if expected else None
        note = "" if good is not None else " (needs a GPU; none here)"
        findings.append(Finding("kernels", f"backend {name}", state + note, good))
    findings += [Finding("kernels", name, state) for name, state in native.info().items()][1:]
    findings += [Finding("kernels", name, state) for name, state in native_cuda.info().items()]
    for dtype in (torch.bfloat16, torch.float16):
        route = "in 16 bit (oneDNN)" if has_kernels(dtype) else "in fp32 (no 16-bit instructions)"
        name = str(dtype).removeprefix("torch.")
        findings.append(Finding("kernels", f"{name} products", f"{route}, on this CPU"))
    if forced := os.environ.get("W2S_BACKEND"):
        findings.append(Finding("kernels", "forced (W2S_BACKEND)", forced))
    return findings


def _machine() -> list[Finding]:
    import torch

    cuda = torch.cuda.is_available()
    gpu = torch.cuda.get_device_name() if cuda else f"no device (torch {torch.__version__})"
    return [
        Finding("machine", "system", f"{platform.system()} {platform.release()}"),
        Finding("machine", "cores", str(os.cpu_count())),
        Finding("machine", "torch threads", str(torch.get_num_threads())),
        Finding("machine", "torch CPU capability", torch.backends.cpu.get_cpu_capability()),
        Finding("machine", "CUDA", gpu, True if cuda else None),
    ]


def _extras() -> list[Finding]:
    findings = []
    for name, use in _EXTRAS.items():
        installed = importlib.util.find_spec(name) is not None
        version = (_version(name) or "present") if installed else "not installed"
        good = True if installed else None
        findings.append(Finding("optional", name, f"{version}  ({use})", good))
    return findings
