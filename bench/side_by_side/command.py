"""``python -m bench side_by_side``: other weak-to-strong code bases on equal work.

    python -m bench side_by_side --peers FOLDER            # print a line for each training
    python -m bench side_by_side --peers FOLDER --quick    # one seed at toy size
    python -m bench side_by_side --peers FOLDER --record   # and commit the rows (clean tree)

FOLDER has checkouts of openai/weak-to-strong and EleutherAI/w2s under the names of their
repositories; neither is part of this repository. ``--student`` and ``--sst2`` add a checkpoint on
SST-2. docs/side_by_side.md shows the committed rows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.harness.environment import environment
from bench.harness.row_files import RESULTS
from bench.side_by_side import inputs, workers
from bench.side_by_side.measures import row
from bench.side_by_side.systems import OURS, PEERS, SYSTEMS, US, check_checkout
from w2s_fast.errors import W2SError

ROWS = RESULTS / "side_by_side.jsonl"
SEEDS = (0, 1, 2)
LIMIT_S = 900.0


def load() -> list[dict[str, Any]]:
    """Return the committed rows."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def main(args: list[str]) -> int:
    """Train with every code base and print a line for each training; exit code 2 for bad input."""
    options = _options(args)
    facts = environment()
    if options.record and (options.quick or facts["dirty"]):
        print("bench side_by_side: --record needs a clean tree, no --quick", file=sys.stderr)
        return 2
    kept = ("cpu", "torch", "git_sha", "utc")
    measured = []
    try:
        for line in measure(options):
            measured.append({**line, **{name: facts[name] for name in kept}})
            print(json.dumps({k: v for k, v in line.items() if k != "losses"}), flush=True)
    except W2SError as e:
        print(f"bench side_by_side: {e}", file=sys.stderr)
        return 2
    if options.record:
        names = {row["name"] for row in measured}
        others = [row for row in load() if row["name"] not in names]
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in others + measured))
    return 0


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each training, all seeds of a setting after another.

    Raises:
        W2SError: A checkout, an environment or a checkpoint does not fit, or a worker failed.
    """
    if (options.student is None) != (options.sst2 is None):
        raise W2SError("--student and --sst2 belong together; give both or neither")
    if options.sst2 is not None and not options.sst2.is_file():
        raise W2SError(f"--sst2 {options.sst2} is no file; expected rows of text TAB label")
    paths = {system.name: [check_checkout(system, options.peers)] for system in PEERS}
    options.out.mkdir(parents=True, exist_ok=True)
    python = options.python or workers.make_environment(options.out / "venv")
    releases = {
        "peer_transformers": workers.check_versions(python)["transformers"],
        "our_transformers": metadata.version("transformers"),
    }
    pythons = {**dict.fromkeys(paths, python), OURS: Path(sys.executable)}
    settings = (inputs.AGREEMENT, inputs.MICRO_BATCHES)
    if options.student is not None:
        settings = (inputs.SST2,)
    if options.quick:
        settings = tuple(map(inputs.quick, settings))
    seeds = SEEDS[:1] if options.quick else SEEDS
    out = options.out / f"{settings[0].name}{'-quick' if options.quick else ''}"
    out.mkdir(exist_ok=True)
    source = options.student or inputs.pretrained(options.out, options.quick)
    student = inputs.portable_student(source, out / "student")
    inputs.write_rows(settings[0], seeds, options.sst2, out)
    for setting in settings:
        shared = {**asdict(setting), "steps": setting.steps, **releases}
        for seed in seeds:
            jobs = [
                inputs.job(setting, system, loss, seed, student, out)
                for system, loss in cells(setting, seed)
            ]
            for line in _train(jobs, pythons, paths, out):
                yield {**shared, **line}


def _train(
    jobs: Sequence[Mapping[str, Any]],
    pythons: Mapping[str, Path],
    paths: Mapping[str, list[Path]],
    out: Path,
) -> Iterator[dict[str, Any]]:
    """Run the jobs of a seed in turns and yield a row for each."""
    results = {}
    for job in jobs:
        shutil.rmtree(job["out"], ignore_errors=True)
        system = job["system"]
        result = workers.run_job(job, pythons[system], paths.get(system, []), out, LIMIT_S)
        results[system, job["loss"]] = result
    for (system, loss), result in sorted(results.items()):
        ours = results[OURS, SYSTEMS[system].losses[loss]]
        yield row(system, loss, jobs[0]["seed"], result, ours, Path(jobs[0]["test"]))


def cells(setting: inputs.Setting, seed: int) -> list[tuple[str, str]]:
    """Return (code base, loss) of all trainings of a seed; each seed begins with another one.

    So a load of the machine that lasts for a while does not meet the same code base every time.
    """
    every = [
        (system.name, loss)
        for loss in setting.losses
        for system in (*PEERS, US)
        for loss in ([loss] if system is not US else _ours(loss))
    ]
    start = seed * 3 % len(every)
    return every[start:] + every[:start]


def _ours(loss: str) -> list[str]:
    """Return our losses that are compared with a loss of the others."""
    return [name for name in US.losses if name.partition("_")[0] == loss]


def _options(args: list[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m bench side_by_side", description=__doc__.splitlines()[0]
    )
    p.add_argument("--peers", type=Path, required=True, help="folder of the two checkouts")
    p.add_argument(
        "--python", type=Path, help="interpreter of the two; default: a virtual environment that "
        "is made in --out from bench/side_by_side/requirements.txt",
    )  # fmt: skip
    p.add_argument("--student", type=Path, help="folder of a Llama checkpoint for --sst2")
    p.add_argument("--sst2", type=Path, help="file of SST-2: text TAB label, without header")
    p.add_argument("--out", type=Path, default=Path("out/side_by_side"), help="%(default)s")
    p.add_argument("--quick", action="store_true", help="one seed at toy size")
    p.add_argument("--record", action="store_true", help="replace the committed rows (clean tree)")
    return p.parse_args(args)
