"""``python -m bench.gpu.memcheck``: small calls of every op under compute-sanitizer's memcheck.

Odd sizes, rows that start anywhere, padding and ignored labels: where an address goes wrong. A
machine without compute-sanitizer passes and says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def sanitizer() -> str:
    """Path of compute-sanitizer; empty if there is none."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "compute-sanitizer"
    return shutil.which("compute-sanitizer") or (str(home) if home.is_file() else "")


def calls() -> None:
    """Forward and backward of each op on tiny inputs; runs inside the sanitizer."""
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
    listed = topk_logprob_sample(5, 131, torch.bfloat16, "cuda", seed=1)
    logp, tail = topk_logprob(listed["logits"].requires_grad_(), listed["ids"])
    (logp.sum() + tail[tail.isfinite()].sum()).backward()
    hidden = torch.randn(7, 16, device="cuda", requires_grad=True)
    head = torch.randn(131, 16, device="cuda", requires_grad=True)
    linear_cross_entropy(hidden, head, torch.arange(7, device="cuda")).backward()
    quantile(torch.randn(5001, device="cuda"), 0.3)
    torch.cuda.synchronize()


def main(args: list[str]) -> int:
    """Run the calls under the sanitizer; its exit code is 9 if it found an error."""
    if args == ["--inside"]:
        calls()
        return 0
    tool = sanitizer()
    if not tool:
        print("no compute-sanitizer here: not checked")
        return 0
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m"]
    # torch's allocator hands out pieces of large blocks: an access beyond a piece would look fine.
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run([*command, "bench.gpu.memcheck", "--inside"], env=env, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
