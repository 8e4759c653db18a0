"""Environment of the whole test run, and the check that no wanted backend is silently missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

# Before torch: threads that wait give their core to the other workers and to the other processes of
# a test. Otherwise they spin, and all takes half as long again.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

# Before anything imports triton: without a GPU its kernels run in the interpreter, and the default
# for fused multiply-add differs between versions, so it is pinned for reproducible numbers.
# The CUDA kernels are emulated on the host where that was built (W2S_BUILD_EMULATION=1).
# With --device=cuda both are compiled: one process cannot do both.
DEVICE = "cuda" if "--device=cuda" in sys.argv else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("W2S_CUDA_EMULATE", "1")
os.environ["W2S_TEST_DEVICE"] = DEVICE
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network fails at once

import pytest  # noqa: E402

from w2s_fast.ops import _op  # noqa: E402
from w2s_fast.testing import OnDevice  # noqa: E402

# Files whose tests of backends run on a GPU as they stand, and names of tests that cannot.
ANY_DEVICE = (
    "test_ops.py", "test_ops_contract.py", "test_linear.py", "test_quantile.py", "test_logprob.py",
)  # fmt: skip
HOST_ONLY = ("compile", "opcheck", "gradcheck", "autocast")

torch.set_num_threads(min(2, torch.get_num_threads()))  # tests are small: more threads only wait


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--require-backends`` and ``--device``."""
    parser.addoption(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="cuda (written --device=cuda): the tests of the ops on a GPU, and those marked gpu",
    )
    parser.addoption(
        "--require-backends",
        default="",
        metavar="NAMES",
        help="comma-separated backends that must work here; a missing one fails the run",
    )


def _required(config: pytest.Config) -> list[str]:
    return [name for name in config.getoption("--require-backends").split(",") if name]


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to start when a required backend is missing: all skipped must not look all green."""
    if config.getoption("--device") != DEVICE:
        raise pytest.UsageError("write --device=cuda with an equals sign")
    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device=cuda: torch {torch.__version__} sees no CUDA device")
    for name in _required(config):
        if name not in _op.BACKENDS:
            raise pytest.UsageError(f"--require-backends: unknown {name!r}; have {_op.BACKENDS}")
        if why := _op.missing(name):
            raise pytest.UsageError(f"--require-backends: {name!r} is missing: {why}")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which backends this run exercises."""
    found = ", ".join(f"{name}: {state}" for name, state in _op.backends_info().items())
    return [f"backends: {found}", f"torch {torch.__version__}, {torch.get_num_threads()} threads"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this device has no use for: a GPU is extra evidence, never the first."""
    kept = [item for item in items if _belongs(item)]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _belongs(item: pytest.Item) -> bool:
    if DEVICE == "cpu" or item.get_closest_marker("gpu"):
        return (DEVICE == "cuda") == bool(item.get_closest_marker("gpu"))
    # Compilation would trace the switch of devices; tests marked gpu have their own.
    if item.path.name not in ANY_DEVICE or any(w in item.name for w in HOST_ONLY):
        return False
    callspec = getattr(item, "callspec", None)
    backend = "cpp" if callspec is None else callspec.params.get("backend", "cpp")
    return backend != "cpp" or "small_tiles" in getattr(item, "fixturenames", ())


@pytest.fixture(autouse=True)
def _on_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """With --device=cuda, tensors that an op's test makes lie on the GPU, of the same values."""
    if DEVICE == "cpu" or request.path.name not in ANY_DEVICE:
        yield
        return
    with OnDevice(DEVICE):
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    """Turn a skip that names a required backend into a failure."""
    report = (yield).get_result()
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].lower()
        for name in _required(item.config):
            if name in reason:
                report.outcome = "failed"
                report.longrepr = f"{name} is required, but the test was skipped: {reason}"


@pytest.fixture(params=_op.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend in turn; one that is missing here is skipped, or fails where it is required."""
    if why := _op.missing(request.param):
        pytest.skip(f"backend {request.param} is missing: {why}")
    name: str = request.param
    return name


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many Triton tiles a row, two vectors a thread, at sizes the interpreter can afford."""
    pytest.importorskip("triton", reason="backend triton is missing")
    from w2s_fast.kernels import cross_entropy as kernels

    def tile(n_cols: int, itemsize: int, capped: bool = False) -> dict[str, int]:
        return {"REP": 2, "LANES": 2, "VEC": 16 // itemsize, "num_warps": 1}

    monkeypatch.setattr(kernels, "tile", tile)
