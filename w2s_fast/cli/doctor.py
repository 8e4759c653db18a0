"""``w2s-fast doctor``: show what this machine offers, and why a kernel is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import NamedTuple

from w2s_fast.cli.parse import asks_for_help
from w2s_fast.errors import W2SError
from w2s_fast.version import __version__

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
USAGE = """usage: w2s-fast doctor [--strict]

  --strict   exit with an error if a package or a backend that this machine can use is missing"""
_GPU_BACKENDS = ("triton", "cuda")  # not expected on a machine without a GPU


class Finding(NamedTuple):
    """One line: ``good`` is False if something expected is missing, None for information."""

    name: str
    value: str
    good: bool | None = None


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code: 1 with ``--strict`` if something is missing."""
    if args and list(args) != ["--strict"]:
        print(USAGE)
        if asks_for_help(args):
            return 0
        raise W2SError(f"unexpected argument {args[0]!r}; doctor takes --strict or nothing")
    sections = {title: findings() for title, findings in _SECTIONS.items()}
    print_findings(sections)
    missing = [f.name for found in sections.values() for f in found if f.good is False]
    if args and missing:
        raise W2SError(f"missing: {', '.join(missing)}; see the lines above")
    return 0


def print_findings(sections: Mapping[str, Sequence[Finding]]) -> None:
    """Print the findings of every section."""
    from rich.console import Console
    from rich.markup import escape

    console, symbols = Console(), {True: "[green]✓[/]", False: "[red]✗[/]", None: " "}
    for section, findings in sections.items():
        console.print(f"\n[bold]{section}[/]")
        for f in findings:
            line = f" {symbols[f.good]} {f.name:<22} {escape(f.value)}"
            console.print(line, highlight=False, soft_wrap=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> list[Finding]:
    findings = [
        Finding("w2s_fast", __version__),
        Finding("python", platform.python_version()),
    ]
    for name in _PACKAGES:
        version = _version(name)
        findings.append(Finding(name, version or "not installed", version is not None))
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
        findings.append(Finding(f"backend {name}", state + note, good))
    findings += [Finding(name, state) for name, state in native.info().items()][1:]
    findings += [Finding(name, state) for name, state in native_cuda.info().items()]
    for dtype in (torch.bfloat16, torch.float16):
        route = "in 16 bit (oneDNN)" if has_kernels(dtype) else "in fp32 (no 16-bit instructions)"
        name = str(dtype).removeprefix("torch.")
        findings.append(Finding(f"{name} products", f"{route}, on this CPU"))
    if forced := os.environ.get("W2S_BACKEND"):
        findings.append(Finding("forced (W2S_BACKEND)", forced))
    return findings


def _machine() -> list[Finding]:
    import torch

    cuda = torch.cuda.is_available()
    gpu = torch.cuda.get_device_name() if cuda else f"no device (torch {torch.__version__})"
    return [
        Finding("system", f"{platform.system()} {platform.release()}"),
        Finding("cores", str(os.cpu_count())),
        Finding("torch threads", str(torch.get_num_threads())),
        Finding("torch CPU capability", torch.backends.cpu.get_cpu_capability()),
        Finding("CUDA", gpu, True if cuda else None),
    ]


def _extras() -> list[Finding]:
    findings = []
    for name, use in _EXTRAS.items():
        installed = importlib.util.find_spec(name) is not None
        version = (_version(name) or "present") if installed else "not installed"
        good = True if installed else None
        findings.append(Finding(name, f"{version}  ({use})", good))
    return findings


_SECTIONS: dict[str, Callable[[], list[Finding]]] = {
    "versions": _versions,
    "kernels": _kernels,
    "machine": _machine,
    "optional": _extras,
}
