"""``python -m tools.hub_kernel.write OUT``: write the ops in the layout of the Hub's kernel loader.

    OUT/build/torch-cuda/__init__.py, metadata.json, ops/, kernels/, ...
    OUT/build/torch-cpu/...

Both variants are the same Python files: on a GPU the Triton kernels run, on a CPU plain PyTorch.
The compiled core and the CUDA kernels are not in them: one binary of ours serves one Python, and
the loader asks for binaries that serve all. ``kernels.get_local_kernel(Path(OUT))`` loads it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

from tools.hub_kernel.closure import PACKAGE, closure
from tools.hub_kernel.relocate import relocate
from w2s_fast.ops import dispatch
from w2s_fast.version import __version__

ROOT = Path(__file__).resolve().parents[2]
NAME = "w2s-fast"
BACKENDS = ("cpu", "cuda")
LICENSE = "apache-2.0"
# Public functions of the ops, and the modules that define them.
PUBLIC = {
    "errors": ("W2SError",),
    "ops.balanced.api": ("balanced_bias",),
    "ops.cross_entropy.api": ("cross_entropy",),
    "ops.dispatch": ("backends_info", "use_backend"),
    "ops.fused_linear.cross_entropy": ("linear_cross_entropy",),
    "ops.fused_linear.logprob": ("linear_logprob", "linear_topk_logprob"),
    "ops.fused_linear.teacher.heads": ("TeacherHead",),
    "ops.fused_linear.topk": ("linear_topk_ids",),
    "ops.info_nce.api": ("info_nce",),
    "ops.info_nce.mixing": ("mix_hard_negatives",),
    "ops.logprob.api": ("topk_logprob",),
    "ops.pack_topk": ("pack_topk",),
    "ops.quantile.api": ("kth_value", "quantile", "top_fraction_mask"),
    "ops.targets": ("SparseTargets",),
    "ops.vocab_parallel.api": ("vocab_parallel_cross_entropy", "vocab_parallel_logprob"),
}
# First version of the loader that reads this layout and metadata.
KERNELS_MINVER = "0.15.0"


def sources() -> dict[str, Path]:
    """Return module -> file of everything that the public names need, backends included."""
    backends = {m for table in dispatch.MODULES.values() for m in table.values()}
    return closure({*(f"{PACKAGE}.{module}" for module in PUBLIC), *backends}, ROOT)


def top_module() -> str:
    """Return the text of the variant's ``__init__.py``."""
    names = sorted(name for defined in PUBLIC.values() for name in defined)
    head = f"Ops of {PACKAGE} {__version__}: fused losses of weak-to-strong generalization."
    lines = [f'"""{head}"""', ""]
    lines += [f"from .{module} import {', '.join(defined)}" for module, defined in PUBLIC.items()]
    lines += ["", f"__version__ = {__version__!r}", f"__all__ = {names}", ""]
    return "\n".join(lines)


def files(namespace: str) -> dict[str, str]:
    """Return path below a variant -> text."""
    found = {"__init__.py": top_module()}
    for module, path in sources().items():
        is_package = path.name == "__init__.py"
        parts = module.split(".")[1:]
        name = Path(*parts, "__init__.py") if is_package else Path(*parts).with_suffix(".py")
        found[name.as_posix()] = relocate(path.read_text(), module, is_package, namespace)
    # In the checkout this package leads to the sources at the top level.
    found["kernels/__init__.py"] = '"""Triton kernels."""\n'
    return found


def metadata(backend: str, kernel_id: str) -> dict[str, object]:
    """Return what the loader reads before it imports a variant."""
    return {
        "id": kernel_id,
        "name": NAME,
        "version": int(__version__.split(".")[0]) or 1,
        "license": LICENSE,
        "kernels-minver": KERNELS_MINVER,
        "python-depends": [],
        "backend": {"type": backend},
    }


def digest() -> str:
    """Return a short hash of the sources: versions in one process must not meet."""
    text = json.dumps(files(PACKAGE), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def write(out: Path) -> None:
    """Write both variants below ``out``, in place of older ones."""
    mark = digest()
    for backend in BACKENDS:
        folder = out / "build" / f"torch-{backend}"
        shutil.rmtree(folder, ignore_errors=True)
        kernel_id = f"_{PACKAGE}_{backend}_{mark}"
        for name, text in files(kernel_id.removeprefix("_")).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        record = json.dumps(metadata(backend, kernel_id), indent=2) + "\n"
        (folder / "metadata.json").write_text(record)


def main(args: list[str]) -> int:
    """Write the layout; return the exit code."""
    p = argparse.ArgumentParser(
        prog="python -m tools.hub_kernel.write", description=__doc__.splitlines()[0]
    )
    p.add_argument("out", type=Path, help="folder of the kernel repository")
    out: Path = p.parse_args(args).out
    write(out)
    print(f"{out}/build: {', '.join(f'torch-{b}' for b in BACKENDS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
