"""Start the processes of the code bases: their environment, their jobs, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness.environment import ROOT
from w2s_fast.errors import W2SError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
LAST_LINES = 12
_VERSIONS = """
import importlib.metadata as m, json, sys
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def pins() -> dict[str, str]:
    """Return package -> version of the environment of the other code bases."""
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if line[:1] not in ("#", "")]
    return dict(line.split("==", 1) for line in lines)


def make_environment(folder: Path) -> Path:
    """Return the interpreter of a virtual environment with ``pins``, which is made once.

    Raises:
        W2SError: It cannot be made.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {REQUIREMENTS.name} into {folder}", file=sys.stderr)
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise W2SError(
                    f"{' '.join(command)} failed with exit code {done.returncode}; make the "
                    f"environment yourself and give --python:\n{last_lines(done.stderr)}"
                )
    return python


def check_versions(python: Path) -> dict[str, str]:
    """Return the versions of ``pins`` in an environment.

    Raises:
        W2SError: The interpreter does not run, or a package is missing or of another version.
    """
    expected = pins()
    command = [str(python), "-c", _VERSIONS, *expected]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as e:
        raise W2SError(f"--python {python} does not run ({e}); expected a Python 3.11") from e
    # A build of torch for CPUs adds "+cpu".
    wrong = [
        f"{name} {found[name] or 'missing'} (expected {version})"
        for name, version in expected.items()
        if (found[name] or "").partition("+")[0] != version
    ]
    if wrong:
        raise W2SError(
            f"the environment of {python} has {', '.join(wrong)}: {python} -m pip install -r "
            f"{REQUIREMENTS}"
        )
    return dict(found)


def run_job(
    job: Mapping[str, Any],
    python: Path,
    import_paths: Sequence[Path],
    out: Path,
    limit_s: float,
) -> dict[str, Any]:
    """Run a job in a process of its own and return what the worker observed.

    Args:
        job: See ``inputs.job``.
        python: Interpreter of the code base.
        import_paths: Folders that it imports from, before this repository.
        out: Folder of files that are written; ``job["out"]`` must not exist.
        limit_s: Seconds after which the worker is killed.

    Returns:
        The result of ``worker.main``, with ``process_s``, from the start of the process to its end,
        and ``load``, the load average of the machine before it.

    Raises:
        W2SError: The worker failed or took too long, or predicted another number of rows.
    """
    name = f"{Path(job['out']).parent.name}-{Path(job['out']).name}"
    files = [out / f"{name}.{kind}" for kind in ("job.json", "result.json", "log")]
    job_file, result_file, log_file = (file.absolute() for file in files)
    job_file.write_text(json.dumps(job))
    result_file.unlink(missing_ok=True)
    # Absolute, as the worker has its own folder, but not resolved: a link makes an environment.
    command = [
        str(python.absolute()), "-m", "bench.side_by_side.worker", str(job_file), str(result_file)
    ]  # fmt: skip
    load, start = os.getloadavg()[0], time.perf_counter()
    with log_file.open("w") as log:
        try:
            code = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=out, timeout=limit_s,
                env=_environment(job, import_paths, out), check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            raise W2SError(
                f"{name}: the worker took more than {limit_s:.0f} s; its last lines "
                f"({log_file}):\n{last_lines(log_file.read_text())}"
            ) from None
        except OSError as e:
            raise W2SError(f"{name}: {python} does not run ({e})") from e
    seconds = time.perf_counter() - start
    if code or not result_file.exists():
        raise W2SError(
            f"{name}: the worker ended with exit code {code}; its last lines ({log_file}):\n"
            f"{last_lines(log_file.read_text())}"
        )
    result = json.loads(result_file.read_text())
    n_test = len(Path(job["test"]).read_text().splitlines())
    if len(result["probabilities"]) != n_test:
        raise W2SError(
            f"{name}: the worker predicted {len(result['probabilities'])} of {n_test} test rows; "
            f"rows of {job['max_length']} tokens or more are dropped: raise max_length"
        )
    return {**result, "process_s": seconds, "load": load}


def last_lines(text: str) -> str:
    """Return the last lines of an output, without the progress bars."""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join([line for line in lines if "it/s]" not in line][-LAST_LINES:])


def _environment(job: Mapping[str, Any], import_paths: Sequence[Path], out: Path) -> dict[str, str]:
    """Return variables that keep a worker offline, on its threads, and out of the checkout."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(p.absolute()) for p in (*import_paths, ROOT)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": str(job["threads"]),
        "HF_HOME": str((out / "hf").absolute()),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
        "CUDA_VISIBLE_DEVICES": "",
    }
