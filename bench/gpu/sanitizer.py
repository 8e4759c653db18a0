"""``python -m bench.gpu.sanitizer TOOL``: run small calls of every op under compute-sanitizer.

``memcheck`` finds accesses outside of allocations, ``racecheck`` threads that read shared memory
before another has written it. Inputs have odd sizes, unaligned rows, padding and ignored labels.
Without compute-sanitizer the check is skipped with a message.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = ("memcheck", "racecheck")


def sanitizer() -> str:
    """Return the path of compute-sanitizer, or an empty string."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "compute-sanitizer"
    return shutil.which("compute-sanitizer") or (str(home) if home.is_file() else "")


def run_calls() -> None:
    """Run forward and backward of each op on tiny inputs, inside the sanitizer."""
    import torch

    from w2s_fast import linear_cross_entropy, quantile, topk_logprob
    from w2s_fast.ops.logprob.api import topk_logprob_sample
    from w2s_fast.ops.reference import KINDS, cross_entropy_sample
    from w2s_fast.ops.weak_loss import weak_loss

    for v in (2, 131, 4099):
        for kind in KINDS:
            if v == 2 and kind == "rest":
                continue
            call = cross_entropy_sample(5, v, torch.bfloat16, "cuda", seed=v, kind=kind)
            z = call.pop("logits").requires_grad_()
            rule = "prior" if v == 2 else "median"
            weak_loss(z, **call, rule=rule, aux=0.4, smoothing=0.1).loss.backward()
    inputs = topk_logprob_sample(5, 131, torch.bfloat16, "cuda", seed=1)
    logp, tail = topk_logprob(inputs["logits"].requires_grad_(), inputs["ids"])
    (logp.sum() + tail[tail.isfinite()].sum()).backward()
    hidden = torch.randn(7, 16, device="cuda", requires_grad=True)
    head = torch.randn(131, 16, device="cuda", requires_grad=True)
    linear_cross_entropy(hidden, head, torch.arange(7, device="cuda")).backward()
    quantile(torch.randn(5001, device="cuda"), 0.3)
    torch.cuda.synchronize()


def main(args: list[str]) -> int:
    """Run the calls under the sanitizer; return its exit code, 9 for an error."""
    if args == ["--inside"]:
        run_calls()
        return 0
    if len(args) != 1 or args[0] not in TOOLS:
        print(f"expected one of {', '.join(TOOLS)}, not {' '.join(args)!r}", file=sys.stderr)
        return 2
    tool = sanitizer()
    if not tool:
        print("compute-sanitizer is not installed: not checked")
        return 0
    command = [tool, "--tool", args[0], "--error-exitcode", "9", sys.executable, "-m"]
    # torch's allocator splits large blocks, which would hide an access beyond a piece.
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run([*command, "bench.gpu.sanitizer", "--inside"], env=env, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
