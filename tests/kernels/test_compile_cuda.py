"""The CUDA kernels compile, link and load where there is no GPU; what their machine code does.

Numbers come from the disassembler (``cuda_audit.py``). They catch register spills, vectors that the
compiler took apart, blocks that do not fit, and what an element of a row costs. That the interior
of a row moves in 16 bytes only, and once, is counted by ``kernels/test_cuda_emulated.py``.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import cuda_audit, cuda_instances, machine_limits, ranks
from helpers.paths import PYTHONPATH, ROOT

from tools.machine_model import cuda, sass
from tools.machine_model.prediction import Kernel, from_dict, predict
from w2s_fast import W2SError
from w2s_fast.ops import dispatch, native_cuda

NEEDED = {"libm.so.6", "libc.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0"}
NEEDED |= {"librt.so.1", "libdl.so.2", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
ARCHES = (80, 90, 100)
# What the library is built for, with every kernel; for the others see ``cuda_instances.py``.
BUILT = ARCHES if ranks.LONG else (90,)

# Kernel -> registers of a thread, threads of a block, blocks that must fit a multiprocessor, and
# loads and stores below 16 bytes: the record, the list, and the peeled ends of a row.
LIMITS = {
    "RowsKernel resident": (64, 512, 2, 48, 64),
    "RowsKernel two passes": (64, 512, 2, 104, 64),
    "GradientKernel": (64, 256, 4, 68, 48),
    "FixupKernel": (64, 256, 4, 64, 40),
    "ScaleKernel": (64, 256, 4, 10, 8),
    "quantile_kernel": (128, 256, 2, 90, 8),
    "two_class_kernel": (80, 256, 3, 210, 84),  # two entries of a row are no 16 bytes
    "two_class_gradient_kernel": (80, 256, 3, 100, 8),
    # Group ids and the mask of each element, and a gradient whose row starts elsewhere.
    "contrastive_kernel": (64, 256, 4, 56, 16),
}

LIMITS_OF_ROWS = machine_limits.LIMITS["cuda"]
Counted = dict[tuple[str, int], Kernel]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not shutil.which(os.environ.get("NVCC", "nvcc")), reason="there is no nvcc on this machine"
    ),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as ``W2S_CUDA=1`` builds it; ninja remembers what is up to date."""
    folder = tmp_path_factory.mktemp("cuda")
    env = {**os.environ, "W2S_CUDA": "1", "W2S_STRICT": "1"}
    # The PTX of Hopper is kept too: it is read for races, and that of sm_80 knows no clusters.
    if ranks.LONG:
        env["NVCCFLAGS"] = f"{env.get('NVCCFLAGS', '')} -gencode=arch=compute_90,code=compute_90"
    else:
        env["TORCH_CUDA_ARCH_LIST"] = "9.0+PTX"
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(folder)]
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "cuda.lock").open("w") as lock:  # of a worker with tests of this file
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "spill" not in done.stdout + done.stderr
    (path,) = folder.glob("w2s_fast/_cuda.*.so")
    return path


@pytest.fixture(scope="module")
def module(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("w2s_fast._cuda", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def code(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """Architecture -> its machine code: of the library, or of the kernels compiled alone."""
    pytest.importorskip("triton", reason="backend triton is missing: it brings the disassembler")
    found = {}
    for arch in ARCHES:
        folder = tmp_path_factory.mktemp(f"sm_{arch}")
        if arch in BUILT:
            cubins = cuda.extract(library, arch, folder)
        else:
            cubins = cuda_instances.compile_instances(arch, folder)
        found[arch] = sass.code_of(cubins)
    return found


@pytest.fixture(scope="module")
def audit(code: dict[int, Any]) -> list[dict[str, Any]]:
    return [row for arch, functions in code.items() for row in cuda_audit.audit(functions, arch)]


@pytest.fixture(scope="module")
def counted(code: dict[int, Any], module: ModuleType) -> Counted:
    """Kernel and architecture -> what it costs an element; the modes with limits, in long all."""
    modes = "" if ranks.LONG else "|".join(f"^{re.escape(name)}$" for name in LIMITS_OF_ROWS)
    return {
        (kernel.name, arch): kernel
        for arch, functions in code.items()
        for kernel in cuda.kernels_of(functions, arch, modes, module)
    }


def test_costs_of_an_element(counted: Counted) -> None:
    """Instructions, exponentials, bytes and bytes in flight stay within their limits."""
    assert set(counted) >= machine_limits.launched("cuda")
    assert not (wrong := machine_limits.all_complaints(counted.values())), "\n".join(wrong)


def test_page_of_predictions_is_up_to_date(counted: Counted) -> None:
    compiler = f"nvcc {cuda.nvcc_version()}"
    assert not (rows := machine_limits.rows_not_on_page(counted.values(), compiler)), "\n".join(
        rows
    )


# What cuda and triton are compared on: kernel of CUDA, mode of Triton.
SAME = {
    "hard bf16": ("RowsKernel<BF16, None, entropy>", "rows hard bf16"),
    "dense bf16": ("RowsKernel<BF16, BF16, entropy>", "rows dense plain bf16"),
}
if ranks.LONG:
    SAME |= {
        "hard fp32": ("RowsKernel<float, None, entropy>", "rows hard fp32"),
        "dense fp32": ("RowsKernel<float, float, entropy>", "rows dense plain fp32"),
    }


@pytest.fixture(scope="module")
def triton_modes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kernel]:
    """Modes of ``SAME`` on sm_90; the compiler needs a process without the interpreter."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "PYTHONPATH": PYTHONPATH}
    pattern = "|".join(f"^{mode}$" for _, mode in SAME.values())
    command = [sys.executable, "-m", "tools.machine_model.count", "triton", "90", pattern, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    kernels = [from_dict(json.loads(line)) for line in done.stdout.splitlines()]
    return {kernel.name: kernel for kernel in kernels}


@pytest.mark.parametrize("what", SAME)
def test_preferred_backend_is_not_predicted_slower(
    what: str, counted: Counted, triton_modes: dict[str, Kernel]
) -> None:
    """The order of backends on a GPU follows the model, within 5 %, until rows are measured."""
    ours, other = SAME[what]
    predicted = {
        "cuda": predict(counted[ours, 90]).time,
        "triton": predict(triton_modes[other]).time,
    }
    first, second = (b for b in dispatch.PREFERRED["cuda"] if b in predicted)
    assert predicted[first] <= 1.05 * predicted[second], predicted


def test_no_races(library: Path) -> None:
    """No word is stored by one thread and loaded by another with no barrier between."""
    pytest.importorskip("triton", reason="backend triton is missing: it brings the disassembler")
    rows = list(cuda_audit.races_of(library, every=ranks.LONG))
    assert len(rows) == (44 if ranks.LONG else 27)
    faults = [f"{r['name']}: {race}" for r in rows for race in r["races"]]
    assert not faults, "\n".join(faults)
    for r in rows:
        # Loops that nvcc unrolls for more threads or chunks than there are leave dead code.
        assert len(r["unseen"]) <= 0.15 * r["accesses"], (r["name"], r["unseen"])


def limits_of(name: str) -> tuple[int, int, int, int, int]:
    (faults,) = (
        limits
        for key, limits in LIMITS.items()
        if name.startswith(key.split()[0]) and key.partition(" ")[2] in name
    )
    return faults


def test_machine_code(audit: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print_table(audit)
    for arch in ARCHES:
        names = {r["name"] for r in audit if r["arch"] == arch}
        assert {name.split()[0] for name in names} == set(cuda_audit.KINDS)
        assert arch not in BUILT or len(names) == 69
    for r in audit:
        registers, _, blocks, loads, stores = limits_of(r["name"])
        assert r["spills"] == 0 and r["stack"] == 0, r
        assert 0 < r["regs"] <= registers and blocks_by_registers(r) >= blocks, r
        assert r["ldg"] - r["ldg128"] <= loads and r["stg"] - r["stg128"] <= stores, r
        assert r["copy"] == r["copy128"], r
        assert r["static"] <= 1024, r  # what sm_90 keeps for itself: all of ours is dynamic
        if "resident" in r["name"]:
            assert r["copy128"] > 0 and r["lds128"] > 0 and r["ldg128"] == 0, r
        elif "two_class" not in r["name"]:
            assert r["ldg128"] > 0, r
        if not r["name"].startswith(("quantile", "two_class")):
            assert r["stg128"] > 0, r
        if r["arch"] >= 90 and "resident" in r["name"]:
            assert r["cluster"] > 0, r


def print_table(audit: list[dict[str, Any]]) -> None:
    """One line a kernel, with one number an architecture."""
    arches = "/".join(map(str, ARCHES))
    print(f"\n{'kernel, sm_' + arches:34} registers  blocks/SM  spills  ", end="")
    print("loads (128-bit)         copies (128)      stores (128)")
    for name in sorted({r["name"] for r in audit}):
        rows = sorted((r for r in audit if r["name"] == name), key=lambda r: r["arch"])

        def each(*keys: str, rows: list[dict[str, Any]] = rows) -> str:
            return "/".join("+".join(str(r[k]) for k in keys) for r in rows)

        fits = "/".join(str(blocks_by_registers(r)) for r in rows)
        wide = [f"{each(k)} ({each(k + '128')})" for k in ("ldg", "copy", "stg")]
        print(f"{name:34} {each('regs'):10} {fits:10} {each('spills'):7} ", end="")
        print(f"{wide[0]:23} {wide[1]:17} {wide[2]}")


def blocks_by_registers(r: dict[str, Any]) -> int:
    """Blocks of an SM with 65536 registers, given to warps in units of 256."""
    threads = limits_of(r["name"])[1]
    warp = -(-r["regs"] * 32 // 256) * 256
    return 65536 // (warp * threads // 32)


def test_needs_nothing_of_cuda(library: Path) -> None:
    """The runtime is linked in: no libcudart whose version would have to fit torch's."""
    done = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "(NEEDED)" in line]
    needed = {line.split("[")[1].rstrip("]") for line in lines}
    assert needed <= NEEDED, needed - NEEDED


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a driver")


@needs_no_gpu
def test_launch_without_a_driver_is_a_clean_error(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_cuda, "_load", lambda: (module, ""))
    assert module.runtime_version() >= 12000 and not module.emulated
    error = module.quantile(5, 0, 0, 0, 0, 0, 0, 0, 0)
    assert error == 35 == module.probe(0)
    with pytest.raises(W2SError, match=r"rows of 3 x 4 was not launched.*update the driver") as e:
        native_cuda.check(error, "rows of 3 x 4")
    assert "\n" not in str(e.value)


# What ``backend`` reads of a tensor on a GPU, where there is none.
ON_CUDA: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)


@needs_no_gpu
def test_old_driver_falls_back_with_one_warning(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that torch can use but this build cannot: Triton serves, and says why once."""
    monkeypatch.setattr(native_cuda, "_load", lambda: (module, ""))
    monkeypatch.setattr(native_cuda, "emulated", lambda: False)
    monkeypatch.setattr(native_cuda, "missing", native_cuda.missing.__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(dispatch, "_resolved", {})
    monkeypatch.setattr(dispatch, "_forced", None)
    with pytest.warns(UserWarning, match="insufficient.*falling back") as warned:
        served = dispatch.backend("cross_entropy", ON_CUDA)
    assert served.__name__.endswith("cross_entropy.triton") and len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.backend("cross_entropy", ON_CUDA) is served
    with pytest.raises(W2SError, match="'cuda' was requested but is missing.*update the driver"):
        dispatch.check_backend("cuda")


@needs_no_gpu
def test_machines_without_nvcc_are_not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_cuda, "_load", lambda: (None, "not built"))
    monkeypatch.setattr(native_cuda, "missing", native_cuda.missing.__wrapped__)
    monkeypatch.setattr(dispatch, "_resolved", {})
    monkeypatch.setattr(dispatch, "_forced", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        served = dispatch.backend("quantile", ON_CUDA)
    assert served.__name__.endswith("quantile.triton")
    with pytest.raises(W2SError, match="not built"):
        dispatch.check_backend("cuda")
