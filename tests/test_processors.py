"""What must not depend on the processor, on one that has less: libraries held to AVX2.

Products of another instruction set sum in another order. A comparison that is bitwise by luck, or
a row that rounding puts on the other side of a threshold, shows there.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "W2S_CPU_CAPABILITY": "avx2",
}
CHOSEN = (
    "test_frozen.py::test_hidden_states",
    "test_last_layer.py::test_the_cache_trains_what_the_model_trains[Qwen2-last]",
    "test_sharding.py::test_micro_batches_on_one_process",
    "test_fp64.py::test_distillation_from_a_head",
)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not an x86 processor")
def test_with_avx2_only() -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=short"]
        + [str(here / name) for name in CHOSEN],
        cwd=here.parent, env=os.environ | AVX2, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:]
