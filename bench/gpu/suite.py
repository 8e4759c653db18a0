"""``python -m bench gpu``: build, test and time everything on a machine with a CUDA device.

The machine needs torch, triton, nvcc, pybind11, ninja and pytest. Each part runs in a process of
its own under a time limit, so that a crash or a hang loses only that part. A finished part adds a
row to the output and is skipped by the next call; ``--again`` runs it again. The output is one
JSON-lines file: a row with the environment, rows of the parts, rows of measurements.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.gpu import gpu_table
from bench.gpu.gpu_cases import CASES
from bench.harness.environment import ROOT, child_environment

OUT = ROOT / "out" / "gpu.jsonl"
# A few minutes on a card must show the most: whether every backend is right, then the times that
# have a target beside those of other libraries, then the whole of the tests, then all other times.
_OPS = ("cross_entropy", "contract", "fused_linear", "fused_linear_contract", "quantile", "logprob",
        "logprob_statistics", "teacher_heads", "gpu", "loss_scales", "softcap",
        "extremes", "info_nce", "closed_rows")  # fmt: skip
TESTS = tuple(f"tests/ops/test_{name}.py" for name in _OPS)
_TAIL = 4000  # characters of a failed part's output in its row


@dataclass(frozen=True)
class Part:
    """One step: a command and its time limit."""

    name: str
    command: tuple[str, ...]
    seconds: int
    measures: bool = False  # whether it prints rows of measurements


def parts() -> list[Part]:
    """Return all parts, the most informative first; their limits add up to eight minutes."""
    me = sys.executable
    pytest = (me, "-m", "pytest", "-q", "--maxfail=20", "-p", "no:cacheprovider")
    pytest += ("--require-backends=triton", "--device=cuda")
    if importlib.util.find_spec("xdist"):
        pytest += (
            "-n",
            str(min(8, os.cpu_count() or 1)),
        )  # Triton compiles most of the time
    worker = (me, "-m", "bench.gpu.gpu_worker")
    cases = [Part(name, (*worker, name), case.seconds, True) for name, case in CASES.items()]
    return [
        Part("build", (me, "setup.py", "-q", "build_ext", "--inplace"), 50),
        Part("parity", (me, "-m", "bench.gpu.parity"), 45, True),
        Part("racecheck", (me, "-m", "bench.gpu.sanitizer", "racecheck"), 25),
        Part("ceilings", (*worker, "ceilings"), 12, True),
        *(part for part in cases if part.name.startswith("targets")),
        Part("tests", (*pytest, *TESTS), 90),
        Part("memcheck", (me, "-m", "bench.gpu.sanitizer", "memcheck"), 20),
        *(part for part in cases if not part.name.startswith("targets")),
    ]


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m bench gpu``."""
    p = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__.splitlines()[0])
    p.add_argument("--parts", default="", help="comma-separated; default: all unfinished ones")
    p.add_argument("--again", action="store_true", help="run finished parts again")
    p.add_argument("--out", type=Path, default=OUT, help="file of rows: %(default)s")
    p.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")
    p.add_argument("--table", action="store_true", help="print the table of --out, run nothing")
    return p


def no_device() -> str:
    """Return why nothing can be measured here, or an empty string."""
    try:
        import torch
    except ImportError as e:
        return f"{e}; install torch for CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device; run this on a machine with one"
    return ""


def load(path: Path) -> list[dict[str, object]]:
    """Return the rows of the output."""
    return parse_rows(path.read_text().splitlines() if path.is_file() else [])


def parse_rows(lines: list[str]) -> list[dict[str, object]]:
    """Return the rows among some lines, without one that a killed process left incomplete."""
    rows = []
    for line in lines:
        if line.startswith('{"kind"'):
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def save(path: Path, rows: list[dict[str, object]]) -> None:
    """Write all rows atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as f:
        f.write("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(f.name, path)


def unfinished(rows: list[dict[str, object]], commit: object, again: bool) -> list[Part]:
    """Return the parts that have not succeeded on this commit."""
    done = {
        r["part"]
        for r in rows
        if r.get("kind") == "part" and r.get("ok") and r.get("git_sha") == commit
    }
    return [p for p in parts() if again or p.name not in done]


def select(candidates: list[Part], names: str) -> list[Part]:
    """Return the named parts; all if there are no names.

    Raises:
        SystemExit: A name is unknown.
    """
    known = [p.name for p in parts()]
    for name in filter(None, names.split(",")):
        if name not in known:
            raise SystemExit(f"bench gpu: unknown part {name!r}; expected some of {known}")
    selected = names.split(",") if names else known
    return [p for p in candidates if p.name in selected]


def run(part: Part) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Run a part; return its own row and the rows it measured. Never raises for its failure."""
    start = time.monotonic()
    env = child_environment(PYTHONUNBUFFERED="1")
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            part.command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | str = child.wait(timeout=part.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # includes compilers and test workers
            child.wait()
            code = f"over its {part.seconds} s"
        log.seek(0)
        output = log.read()
    row: dict[str, object] = {
        "kind": "part", "part": part.name, "ok": code == 0,
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip
    lines = [line for line in output.splitlines() if line.strip()]
    if code != 0:
        row |= {"exit": code, "tail": output[-_TAIL:]}
    elif lines and not part.measures:
        row["last_line"] = lines[-1][:200]
    measured = parse_rows(lines) if part.measures else []
    return row, [{**r, "part": part.name} for r in measured]


def main(args: list[str]) -> int:
    """Run the unfinished parts; exit code 0 if all succeed, 1 if not, 2 without a device."""
    a = parser().parse_args(args)
    rows = load(a.out)
    if a.table:
        print(gpu_table.table(rows))
        return 0
    if a.dry_run:
        for part in select(parts(), a.parts):
            print(f"{part.name:<22} {part.seconds:>3} s  {' '.join(part.command)}")
        print(f"{sum(p.seconds for p in select(parts(), a.parts))} s at most, to {a.out}")
        return 0
    if why := no_device():
        print(f"bench gpu: {why}", file=sys.stderr)
        return 2
    from bench.gpu.gpu_environment import gpu_environment

    columns = gpu_environment()
    # The code of other GPUs would triple the time of the build.
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", str(columns.get("capability", "")))
    sha = columns["git_sha"]
    rows = [r for r in rows if r.get("kind") != "environment" or r.get("git_sha") != sha]
    rows.append({"kind": "environment", **columns})
    failed = False
    for part in select(unfinished(rows, sha, a.again), a.parts):
        print(f"{part.name} ...", end=" ", flush=True)
        row, part_rows = run(part)
        replaced = [r for r in rows if r.get("part") == part.name and r.get("git_sha") == sha]
        rows = [r for r in rows if r not in replaced]
        rows += [{**r, "git_sha": sha} for r in (*part_rows, row)]
        save(a.out, rows)
        failed |= not row["ok"]
        print(f"{'ok' if row['ok'] else 'FAILED'} {row['seconds']} s {row.get('last_line', '')}")
        if not row["ok"]:
            print(str(row["tail"])[-1500:])
    print(gpu_table.table([r for r in rows if r.get("git_sha") == sha]))
    return int(failed)
