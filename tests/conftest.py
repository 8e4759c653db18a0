"""Environment of the whole test run, and the check that no wanted backend is silently missing."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.paths import ROOT, TESTS

# Before torch: threads that wait give their core to the other workers and to the other processes of
# a test. Otherwise they spin, and all takes half as long again.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

# Before anything imports triton: without a GPU its kernels run in the interpreter, and the default
# for fused multiply-add differs between versions, so it is pinned for reproducible numbers.
# The CUDA kernels are emulated on the host where that was built (W2S_BUILD_EMULATION=1).
# With --device=cuda both are compiled: one process cannot do both.
_asked = "--device=cuda" in sys.argv
# A worker of pytest-xdist has no arguments: it inherits what the first process has found.
if "PYTEST_XDIST_WORKER" in os.environ:
    _asked = os.environ.get("W2S_TEST_DEVICE") == "cuda"
DEVICE = "cuda" if _asked else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("W2S_CUDA_EMULATE", "1")
os.environ["W2S_TEST_DEVICE"] = DEVICE
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Hypothesis would keep what it finds in the working folder.
_found = Path(tempfile.gettempdir()) / f"hypothesis-{os.getuid()}"
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(_found))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network fails at once
# Whatever started the tests, a test that starts ranks is their launcher.
for _name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_ID"):
    os.environ.pop(_name, None)
os.environ.pop("W2S_DEVICE_CHECKS", None)

import pytest  # noqa: E402
from helpers import triton_interpreter  # noqa: E402, F401

from w2s_fast.ops import dispatch, native, use_backend  # noqa: E402
from w2s_fast.testing import OnDevice  # noqa: E402

# Files whose tests of backends run on a GPU as they stand, and names of tests that cannot.
ANY_DEVICE = (
    "ops/test_cross_entropy.py", "ops/test_contract.py", "ops/test_fused_linear.py",
    "ops/test_quantile.py", "ops/test_logprob.py", "ops/test_logprob_statistics.py",
    "ops/test_teacher_heads.py", "ops/test_loss_scales.py", "ops/test_softcap.py",
    "ops/test_extremes.py", "ops/test_info_nce.py",
)  # fmt: skip
HOST_ONLY = ("compile", "opcheck", "gradcheck", "autocast")

# Instruction sets of the compiled core, widest first, and files whose tests of ``cpp`` run on every
# set that this processor has: what differs between sets is the arithmetic of rows and selections.
SETS = ("avx512", "avx2", "base")
ALL_SETS = (
    "ops/test_cross_entropy.py", "ops/test_row_phases.py", "ops/test_order_statistics.py",
    "ops/test_info_nce.py",
)  # fmt: skip

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
        if name not in dispatch.BACKENDS:
            raise pytest.UsageError(
                f"--require-backends: unknown {name!r}; have {dispatch.BACKENDS}"
            )
        if why := dispatch.missing(name):
            raise pytest.UsageError(f"--require-backends: {name!r} is missing: {why}")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which backends this run exercises."""
    found = ", ".join(f"{name}: {state}" for name, state in dispatch.backends_info().items())
    return [f"backends: {found}", f"torch {torch.__version__}, {torch.get_num_threads()} threads"]


# Before the selection by ``-m``, which reads the markers that are added here.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what this device does not run, and mark what stands in for a GPU."""
    selected = [item for item in items if _belongs(item)]
    if len(selected) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if not _belongs(item)])
        items[:] = selected
    for item in items:
        if DEVICE == "cpu" and (_backend(item) in ("triton", "cuda") or "_triton" in item.name):
            item.add_marker("emulated")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave the modules and tests out of every later collection of garbage."""
    gc.collect()
    gc.freeze()


def _file(path: Path) -> str:
    return path.relative_to(TESTS).as_posix()


def _belongs(item: pytest.Item) -> bool:
    if DEVICE == "cpu" or item.get_closest_marker("gpu"):
        return (DEVICE == "cuda") == bool(item.get_closest_marker("gpu"))
    # Compilation would trace the switch of devices; tests marked gpu have their own.
    if _file(item.path) not in ANY_DEVICE or any(w in item.name for w in HOST_ONLY):
        return False
    return _backend(item) != "cpp" or "small_tiles" in getattr(item, "fixturenames", ())


def _backend(item: pytest.Item) -> str:
    """The backend that the test is parametrized with; ``cpp`` where there is none."""
    callspec = getattr(item, "callspec", None)
    return "cpp" if callspec is None else str(callspec.params.get("backend", "cpp"))


@pytest.fixture(scope="session", autouse=True)
def _nowhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests run in an empty folder: none finds what `make run` or another left in the checkout."""
    before, empty = Path.cwd(), tmp_path_factory.mktemp("empty")
    os.chdir(empty)
    yield
    os.chdir(before)


@pytest.fixture(scope="session", autouse=True)
def _one_core() -> Iterator[None]:
    """Runs that do not ask for workers have none: a worker starts longer than a toy stage takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        yield


@pytest.fixture(autouse=True)
def _nothing_left(_nowhere: None) -> Iterator[None]:
    here = Path.cwd()
    yield
    assert Path.cwd() == here, "the test went to another folder for good"
    left = sorted(p.name for p in here.iterdir())
    for name in left:  # the next test is not to blame
        path = here / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not left, f"the test left {left} in the working folder; write to tmp_path"


@pytest.fixture(autouse=True)
def _on_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """With --device=cuda, tensors that an op's test makes lie on the GPU, of the same values."""
    if DEVICE == "cpu" or _file(request.path) not in ANY_DEVICE:
        yield
        return
    with OnDevice(DEVICE):
        yield


# What builds and caches write is theirs.
_SKIPPED = frozenset((".git", ".venv", "build", "__pycache__"))
_CACHES = re.compile(r"\.(pytest|mypy|ruff)_cache$|.*\.egg-info$")
_files: set[str] = set()


def _checkout() -> set[str]:
    found: set[str] = set()
    for folder, below, names in os.walk(ROOT):
        below[:] = [n for n in below if n not in _SKIPPED and not _CACHES.match(n)]
        found.update(os.path.join(folder, n) for n in names if not n.endswith(".so"))
    return found


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember what lies in the checkout; in the process that the workers belong to."""
    if not hasattr(session.config, "workerinput"):
        _files.update(_checkout())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that left files in the checkout: the next one would find them."""
    if hasattr(session.config, "workerinput"):
        return
    new = sorted(os.path.relpath(p, ROOT) for p in _checkout() - _files)
    if new and session.exitstatus == 0:
        print(f"\nFAILED: the tests left {len(new)} files in the checkout: {new[:5]}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


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


def _sets() -> tuple[str, ...]:
    """Instruction sets of the core that this process may use; empty where there is no core."""
    if DEVICE == "cuda" or dispatch.missing("cpp"):
        return ()
    return SETS[SETS.index(native.core().isa()) :]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every backend in turn; ``cpp`` on each narrower instruction set too, where it matters."""
    name = metafunc.definition.name
    every = _file(metafunc.definition.path) in ALL_SETS and not any(w in name for w in HOST_ONLY)
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", _sets() or ("missing",), indirect=True)
    chosen = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "backend" in metafunc.fixturenames and "backend" not in chosen:
        narrower = [f"cpp-{isa}" for isa in _sets()[1:]] if every else []
        metafunc.parametrize("backend", [*dispatch.BACKENDS, *narrower], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every backend in turn; one that is missing here is skipped, or fails where it is required."""
    name, _, isa = request.param.partition("-")
    if why := dispatch.missing(name):
        pytest.skip(f"backend {name} is missing: {why}")
    with _instructions(isa):
        yield name


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of the compiled core that this processor has, for tests of it alone."""
    if why := dispatch.missing("cpp"):
        pytest.skip(f"backend cpp is missing: {why}")
    with _instructions(request.param):
        yield request.param


@contextlib.contextmanager
def _instructions(isa: str) -> Iterator[None]:
    if not isa:
        yield
        return
    core = native.core()
    before = core.isa()
    assert core.use_isa(isa) and core.isa() == isa
    try:
        yield
    finally:
        core.use_isa(before)


@pytest.fixture(params=["", "ref"], ids=["chosen", "ref"])
def served(request: pytest.FixtureRequest) -> Iterator[None]:
    """The backend of this machine, then plain torch, which serves where nothing was compiled."""
    with use_backend(request.param or None):
        yield


@pytest.fixture(scope="module", autouse=True)
def no_inherited_process_group() -> Iterator[None]:
    """Files share a process in any order: a group that one initialised ends with it."""
    yield
    if not torch.distributed.is_initialized():
        return
    if (comm := sys.modules.get("deepspeed.comm")) is not None and comm.is_initialized():
        comm.destroy_process_group()  # and forgets the groups that it made
    else:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def one_rank(no_inherited_process_group: None) -> Any:
    """A process group of this process alone, for as long as the file's tests."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    return torch.distributed.group.WORLD


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many Triton tiles a row, two vectors a thread, at sizes the interpreter can afford."""
    pytest.importorskip("triton", reason="backend triton is missing")
    from w2s_fast.kernels import _tile

    def tile(n_cols: int, itemsize: int, capped: bool = False) -> dict[str, int]:
        return {"REP": 2, "LANES": 2, "VEC": 16 // itemsize, "num_warps": 1}

    monkeypatch.setattr(_tile, "tile", tile)
