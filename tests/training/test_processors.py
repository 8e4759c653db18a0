"""What must not depend on the processor, on one that has less: libraries held to AVX2.

Products of another instruction set sum in another order. A comparison that is bitwise by luck, or
a row that rounding puts on the other side of a threshold, shows there.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
from helpers.paths import ROOT, TESTS

AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "W2S_CPU_CAPABILITY": "avx2",
}
CHOSEN = (
    "probing/test_hidden_states.py::test_hidden_states",
    "probing/test_last_layer.py::test_the_cache_trains_what_the_model_trains[Qwen2-last]",
    "training/test_sharding.py::test_micro_batches_on_one_process",
    "losses/test_fp64.py::test_distillation_from_a_head",
)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not an x86 processor")
def test_with_avx2_only() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=short"]
        + [str(TESTS / name) for name in CHOSEN],
        cwd=ROOT, env=os.environ | AVX2, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:]
