"""What this machine offers: versions, kernels and why one is missing, CPU, CUDA, extras."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

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
_GPU = ("triton", "cuda")  # backends that nothing lacks on a machine without one


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        section: Heading it stands under.
        name: What was looked at.
        value: What was found.
        good: True fine, False missing though wanted, None plain information.
    """

    section: str
    name: str
    value: str
    good: bool | None = None


def examine() -> list[Finding]:
    """Look at everything; never raises for something that is missing."""
    return [*_versions(), *_kernels(), *_machine(), *_extras()]


def print_findings(findings: list[Finding], console: Console) -> None:
    """Print the findings by section."""
    from rich.markup import escape

    marks = {True: "[green]✓[/]", False: "[red]✗[/]", None: " "}
    section = ""
    for f in findings:
        if f.section != section:
            section = f.section
            console.print(f"\n[bold]{section}[/]")
        line = f" {marks[f.good]} {f.name:<22} {escape(f.value)}"
        console.print(line, highlight=False, soft_wrap=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> list[Finding]:
    found = [
        Finding("versions", "w2s_fast", __version__),
        Finding("versions", "python", platform.python_version()),
    ]
    for name in _PACKAGES:
        version = _version(name)
        found.append(Finding("versions", name, version or "not installed", version is not None))
    return found


def _kernels() -> list[Finding]:
    import torch

    from w2s_fast.ops import backends_info, native, native_cuda
    from w2s_fast.ops.fused_linear.gemm import has_kernels

    found = []
    for name, state in backends_info().items():
        wanted = torch.cuda.is_available() or name not in _GPU
        good = True if state == "ok" else False if wanted else None
        note = "" if good is not None else " (for GPUs; none here)"
        found.append(Finding("kernels", f"backend {name}", state + note, good))
    found += [Finding("kernels", name, state) for name, state in native.info().items()][1:]
    found += [Finding("kernels", name, state) for name, state in native_cuda.info().items()]
    for dtype in (torch.bfloat16, torch.float16):
        way = "as they are (oneDNN)" if has_kernels(dtype) else "through fp32 (no instructions)"
        name = str(dtype).removeprefix("torch.")
        found.append(Finding("kernels", f"{name} products", f"{way}, on this CPU"))
    forced = os.environ.get("W2S_BACKEND")
    if forced:
        found.append(Finding("kernels", "forced (W2S_BACKEND)", forced))
    return found


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
    found = []
    for name, use in _EXTRAS.items():
        present = importlib.util.find_spec(name) is not None
        version = (_version(name) or "present") if present else "not installed"
        found.append(Finding("optional", name, f"{version}  ({use})", True if present else None))
    return found
