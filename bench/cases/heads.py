"""``python -m bench heads``: time a sweep of linear heads on cached features, and alternatives.

``sweep`` trains every loss with every seed on all cores, timed from the first step of any process
to the end of the last; ``noise`` trains as many heads of ten losses, four fifths of them with
targets that are made anew in every step. ``epoch`` trains every loss for one epoch, with
``train_heads`` and with one ``train`` per loss on the same features. ``probe`` is a single linear
probe of a small transformer: uncached (its backbone runs at every step), with ``train`` on cached
features, with ``train_heads``; and the cost of the cache. CPU time is the minimum over the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.harness.cpu_timing import Candidate, interleave
from bench.harness.environment import child_environment, environment
from bench.harness.row_files import Row, add_output_options, store
from w2s_fast.losses import make_loss
from w2s_fast.probing import (
    CachedHead,
    CachedRows,
    HeadRun,
    cache_features,
    predict_heads,
    train_heads,
)
from w2s_fast.training import (
    CoTeaching,
    Encoded,
    SelfTargets,
    StepTargets,
    TrainConfig,
    predict,
    train,
)

PARTS = ("sweep", "noise", "epoch", "probe")
SEEDS = 5
# The vision probes of openai/weak-to-strong: Adam at 1e-3, cosine schedule, 5 to 20 epochs.
RECIPE = TrainConfig(epochs=10, batch_size=128, lr=1e-3)
_BACKBONE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}
_VARIANTS = {
    "xent": ("",),
    "hard_xent": ("",),
    "logconf": ("aux_coef=0.25", "aux_coef=0.5", "aux_coef=0.75", "aux_coef=0.5,warmup_frac=0.2"),
    "logconf_paper": (
        "aux_coef=0.25",
        "aux_coef=0.5",
        "aux_coef=0.75",
        "aux_coef=0.75,warmup_frac=0.1",
    ),
    "logconf_openai": ("aux_coef=0.25", "aux_coef=0.5", "aux_coef=0.75"),
    "logconf_eleuther": ("aux_coef=0.25", "aux_coef=0.5", "aux_coef=0.75", "window=128"),
    "product": ("", "alpha=2", "beta=0.5", "beta=2"),
    "window": ("radius=0.05", "radius=0.1", "radius=0.15", "radius=0.3"),
    "smoothing": ("epsilon=0.05", "epsilon=0.1", "epsilon=0.2", "epsilon=0.3"),
    "focal": ("gamma=0.5", "gamma=1", "gamma=2", "gamma=5"),
    "gce": ("q=0.3", "q=0.5", "q=0.7", "q=0.9"),
    "reverse_ce": ("", "floor=0.01", "forward_coef=0.5", "forward_coef=1"),
    "reverse_kl": ("", "floor=0.01"),
    "entropy_min": ("aux_coef=0.05", "aux_coef=0.1", "aux_coef=0.3", "aux_coef=1"),
    "entropy_eleuther": ("aux_coef=0.25", "aux_coef=0.5", "aux_coef=0.75"),
}
# Losses and step targets of ``noise``: every pair is a head.
_NOISE_LOSSES = (
    "xent", "logconf", "logconf_paper", "logconf_openai", "product", "window", "smoothing", "focal",
    "gce", "reverse_ce",
)  # fmt: skip
_STEP_TARGETS: tuple[StepTargets | None, ...] = (
    None,
    CoTeaching(forget=0.3),
    SelfTargets(decay=0.99, share=0.5, ramp=0.2, score="entropy", weigh=True, final="teacher"),
    SelfTargets(target="hard", threshold=0.9, drop=0.1),
    SelfTargets(refresh=20, start=0.5, target="sharp", score="entropy", threshold=0.2, weigh=True),
)
SPECS = tuple(f"{name}:{fields}" for name, variants in _VARIANTS.items() for fields in variants)


def main(args: list[str]) -> int:
    """Measure the selected parts, print and store the rows."""
    p = argparse.ArgumentParser(prog="python -m bench heads", description=__doc__.splitlines()[0])
    p.add_argument("--parts", default=",".join(PARTS), help="comma-separated: %(default)s")
    p.add_argument("--sizes", default="384,1024", help="numbers of features: %(default)s")
    p.add_argument("--workers", type=int, default=2, help="processes of one core: %(default)s")
    add_output_options(p)
    p.add_argument("--job", help=argparse.SUPPRESS)
    a = p.parse_args(args)
    if a.job:
        return _worker(json.loads(a.job))
    torch.set_num_threads(1)
    rows: list[Row] = []
    for part, d in itertools.product(a.parts.split(","), map(int, a.sizes.split(","))):
        for row in _PARTS[part](a, d):
            threads = {"threads": a.workers} if part in _RUNS else {}
            row = {**row, "quick": a.quick, **environment(), **threads}
            print(json.dumps({k: row[k] for k in list(row)[:14]}), flush=True)
            rows.append(row)
    store(rows, a)
    return 0


def _row(case: str, n: int, d: int, provider: str, **numbers: float) -> Row:
    shape = {"op": "heads", "case": case, "dtype": "bf16", "n": n, "d": d, "v": 2}
    rounded = {k: float(f"{v:.4g}") for k, v in numbers.items()}
    return {**shape, "allocator": "stock", "provider": provider, **rounded}


def _problem(n: int, d: int) -> tuple[Tensor, np.ndarray]:
    """Return bf16 features (N, D) and weak labels (N, 2) of a linear rule with noise."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g)
    rule = x @ torch.randn(d, generator=g) / d**0.5
    p = (2 * rule + torch.randn(n, generator=g)).sigmoid()
    return x.bfloat16(), torch.stack([1 - p, p], 1).numpy()


def _runs(weak: np.ndarray, specs: tuple[str, ...] = SPECS) -> list[HeadRun]:
    return [HeadRun(weak, make_loss(spec)) for spec in specs]


def _noise_runs(weak: np.ndarray) -> list[HeadRun]:
    return [
        HeadRun(weak, make_loss(spec), step_targets=targets)
        for targets in _STEP_TARGETS
        for spec in _NOISE_LOSSES
    ]


def _recipe(quick: bool, epochs: int | None = None) -> TrainConfig:
    return TrainConfig(epochs=epochs or (1 if quick else RECIPE.epochs), batch_size=128, lr=1e-3)


# Sweep ----------------------------------------------------------------------------------------


def sweep(a: argparse.Namespace, d: int) -> Iterator[Row]:
    """Yield wall and CPU time of all losses and seeds, divided among the processes."""
    yield _sweep(a, d, "sweep")


def noise(a: argparse.Namespace, d: int) -> Iterator[Row]:
    """Yield the same of heads with step targets."""
    yield _sweep(a, d, "noise")


def _sweep(a: argparse.Namespace, d: int, case: str) -> Row:
    from safetensors.torch import save_file

    n = 600 if a.quick else 20000
    x, weak = _problem(n, d)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/problem.safetensors"
        save_file({"x": x, "weak": torch.from_numpy(weak)}, path)
        tasks = [(seed, part) for seed in range(SEEDS) for part in range(a.workers)]
        jobs = [
            {
                "path": path,
                "tasks": tasks[i :: a.workers],
                "parts": a.workers,
                "quick": a.quick,
                "case": case,
            }
            for i in range(a.workers)
        ]
        rounds = [_run_processes(jobs) for _ in range(1 if a.quick else 3)]
    wall, cpu = min(r[0] for r in rounds), min(r[1] for r in rounds)
    losses = len(_RUNS[case](weak))
    return _row(case, n, d, "ours", wall_ms=1e3 * wall, cpu_ms=1e3 * cpu, losses=losses,
                seeds=SEEDS, epochs=_recipe(a.quick).epochs)  # fmt: skip


def _run_processes(jobs: list[dict[str, Any]]) -> tuple[float, float]:
    """Start all processes at once; return wall seconds to the end of the last, and CPU seconds."""
    env = child_environment(OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "bench", "heads", "--job"]
    workers = [
        subprocess.Popen([*command, json.dumps(job)], env=env, text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for job in jobs
    ]  # fmt: skip
    for w in workers:
        assert w.stdout is not None and w.stdout.readline() == "ready\n"
    start = time.perf_counter()
    for w in workers:
        assert w.stdin is not None
        w.stdin.write("go\n")
        w.stdin.flush()
    cpu_seconds = [w.stdout.readline() for w in workers if w.stdout is not None]
    wall = time.perf_counter() - start
    if any([w.wait() for w in workers]):
        raise SystemExit("bench: a process of the sweep failed")
    return wall, sum(map(float, cpu_seconds))


def _worker(job: dict[str, Any]) -> int:
    """Train this process's share after a line on stdin; print CPU seconds."""
    from safetensors import safe_open

    torch.set_num_threads(1)
    with safe_open(job["path"], framework="pt") as f:
        x, weak = f.get_tensor("x"), f.get_tensor("weak").numpy()
    runs, recipe = _RUNS[job["case"]](weak), _recipe(job["quick"])
    train_heads(x[:256], _RUNS[job["case"]](weak[:256]), recipe, 0)  # warms up
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.process_time()
    for seed, part in job["tasks"]:
        train_heads(x, runs[part :: job["parts"]], recipe, seed)
    print(time.process_time() - start, flush=True)
    return 0


# Alternatives -----------------------------------------------------------------------------------


def epoch(a: argparse.Namespace, d: int) -> Iterator[Row]:
    """Yield the times of all losses for one epoch: together, and one by one with ``train``."""
    n = 300 if a.quick else 20000
    x, weak = _problem(n, d)
    data, recipe, runs = CachedRows(x), _recipe(a.quick, 1), _runs(weak)

    def loop() -> None:
        for run in runs:
            train(CachedHead(d, 2), data, weak, run.loss, recipe, 0)

    timed = {"ours": Candidate(lambda: train_heads(x, runs, recipe, 0), warm=0),
            "loop": Candidate(loop, warm=0)}  # fmt: skip
    yield from _time_alternatives(
        a, "epoch", n, d, timed, {"losses": len(SPECS), "seeds": 1, "epochs": 1}
    )


def probe(a: argparse.Namespace, d: int) -> Iterator[Row]:
    """Yield the times of one epoch of a transformer's probe, with and without cache."""
    if d != _BACKBONE["hidden_size"]:
        return
    model, data = _transformer(64 if a.quick else 512)
    weak = _problem(len(data), d)[1]
    loss, recipe = make_loss("logconf"), _recipe(a.quick, 1)
    with tempfile.TemporaryDirectory() as folder:
        x = cache_features(model, data, Path(folder) / "f.safetensors", dtype=torch.float32)

        def uncached() -> None:
            with torch.no_grad():
                model.head.weight.zero_()
                model.head.bias.zero_()
            train(model, data, weak, loss, recipe, 0)

        uncached()
        heads = train_heads(x, [HeadRun(weak, loss)], recipe, 0)
        error = np.abs(predict(model, data) - predict_heads(x, heads)[0]).max()
        numbers = itertools.count()
        timed = {
            "ours": Candidate(lambda: train_heads(x, [HeadRun(weak, loss)], recipe, 0), warm=0),
            "loop": Candidate(
                lambda: train(CachedHead(d, 2), CachedRows(x), weak, loss, recipe, 0), warm=0
            ),
            "uncached": Candidate(uncached, warm=0),
            "cache": Candidate(
                lambda: cache_features(model, data, Path(folder) / f"{next(numbers)}"), warm=0
            ),
        }
        columns = {"losses": 1, "seeds": 1, "epochs": 1, "prob_err": float(error)}
        yield from _time_alternatives(a, "probe", len(data), d, timed, columns)


def _transformer(n: int) -> tuple[Any, Encoded]:
    """Return a frozen Llama of six layers with a head, and N rows of 32 tokens."""
    from transformers import LlamaConfig, LlamaModel

    from w2s_fast.models.classifier import Classifier

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=1000, intermediate_size=1536, use_cache=False, **_BACKBONE)
    tokens = np.random.default_rng(0).integers(0, 1000, 32 * n).astype(np.int32)
    data = Encoded(tokens, np.arange(n + 1) * 32, None, 0)
    return Classifier(LlamaModel(config), 2, "last", "zero", frozen=True), data


def _time_alternatives(
    a: argparse.Namespace,
    case: str,
    n: int,
    d: int,
    timed: dict[str, Candidate],
    columns: dict[str, float],
) -> Iterator[Row]:
    samples = interleave(timed, 1 if a.quick else 3)
    base = samples["ours"].summary()["cpu_ms"]
    for provider, s in samples.items():
        summary = s.summary()
        yield _row(case, n, d, provider, cpu_ms=summary["cpu_ms"], wall_ms=summary["wall_ms"],
                   ratio_to_ours=summary["cpu_ms"] / base, **columns)  # fmt: skip


_RUNS = {"sweep": _runs, "noise": _noise_runs}
_PARTS = {"sweep": sweep, "noise": noise, "epoch": epoch, "probe": probe}
