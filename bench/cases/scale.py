"""``python -m bench scale``: measure labelling, the exact threshold's exchange, and memory.

``labelling`` compares ``predict`` with a reimplementation of the evaluation loop of
openai/weak-to-strong, on the same model and texts. ``exchange`` is the extra cost of an exact batch
threshold over a threshold of each process's own rows, all else being equal. ``memory`` is the peak
of a ZeRO-3 process beyond its memory before the model, against the estimate of ``w2s-fast plan``.
The last two start processes of their own, connected by gloo.
"""

from __future__ import annotations

import argparse
import dataclasses
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

from bench.harness.cpu_timing import Candidate, interleave
from bench.harness.environment import child_environment, environment
from bench.harness.row_files import Row, add_output_options, store
from w2s_fast.distributed.network import free_port
from w2s_fast.distributed.world import exit_process, get_world, init_distributed
from w2s_fast.losses import make_loss
from w2s_fast.models import ModelConfig
from w2s_fast.training import Encoded, TrainConfig, predict, train

PARTS = ("labelling", "exchange", "memory")
EVAL_BATCH = 32  # rows in a batch of the padded loop
_BACKBONE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8}


class Texts:
    """Rows to encode, with the attributes that ``encode`` reads."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.pairs = tuple(texts), None
        self.ids = tuple(map(str, range(len(texts))))


def main(args: list[str]) -> int:
    """Measure the selected parts, print and store the rows."""
    p = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__.splitlines()[0])
    p.add_argument("--parts", default=",".join(PARTS), help="comma-separated: %(default)s")
    p.add_argument("--texts", action="append", default=[], metavar="NAME=FILE", help="label these, "
                   "one text per line, up to the first tab; needs --model")  # fmt: skip
    p.add_argument("--model", help="checkpoint whose tokenizer and backbone label the texts")
    add_output_options(p)
    p.add_argument("--rank", help=argparse.SUPPRESS)
    a = p.parse_args(args)
    if a.rank:
        return _rank(json.loads(a.rank))
    rows: list[Row] = []
    for part in a.parts.split(","):
        for row in _PARTS[part](a):
            row = {**row, "quick": a.quick, **environment()}
            print(json.dumps({k: row[k] for k in list(row)[:14]}), flush=True)
            rows.append(row)
    store(rows, a, "scale.jsonl")
    return 0


def _row(op: str, case: str, n: int, provider: str, **numbers: float) -> Row:
    shape = {"op": op, "case": case, "dtype": "fp32", "n": n, "v": 2, "allocator": "stock"}
    return {**shape, "provider": provider, **{k: float(f"{v:.5g}") for k, v in numbers.items()}}


# Labelling ------------------------------------------------------------------------------------


def labelling(a: argparse.Namespace) -> Iterator[Row]:
    """Yield the speed of both loops on every set of texts."""
    sets = {"long_tailed": _long_tailed(60 if a.quick else 500)}
    model = _classifier(a.model)
    for option in a.texts:
        name, _, path = option.partition("=")
        sets[name] = _encoded(a.model, path)
    for name, data in sets.items():
        ours, padded = predict(model, data), padded_loop(model, data)
        assert np.abs(ours - padded).max() < 1e-4, name
        samples = interleave(
            {
                "ours": Candidate(lambda d=data: predict(model, d), warm=0),
                "padded": Candidate(lambda d=data: padded_loop(model, d), warm=0),
            },
            1 if a.quick else 3,
        )
        base = samples["ours"].summary()["cpu_ms"]
        for provider, s in samples.items():
            numbers = s.summary()
            rate = 1e3 * len(data) / numbers["wall_ms"]
            yield _row(
                "labelling", name, len(data), provider, cpu_ms=numbers["cpu_ms"],
                wall_ms=numbers["wall_ms"], rows_per_s=rate, ratio_to_ours=numbers["cpu_ms"] / base,
            )  # fmt: skip


@torch.inference_mode()
def padded_loop(model: Any, data: Encoded) -> np.ndarray:
    """Predict rows in order, in batches of ``EVAL_BATCH`` padded to their longest row."""
    model.eval()
    out = []
    for start in range(0, len(data), EVAL_BATCH):
        part = np.arange(start, min(start + EVAL_BATCH, len(data)))
        batch = data.batch(part)
        out.append(model(batch.input_ids, batch.attention_mask).float().softmax(1))
    return torch.cat(out).numpy()


def _long_tailed(n: int) -> Encoded:
    """Return N rows with lengths like web text: log-normal, median 40, up to 512 tokens."""
    g = np.random.default_rng(0)
    lengths = np.clip(np.exp(g.normal(np.log(40), 1.0, n)), 4, 512).astype(np.int64)
    tokens = g.integers(5, 30000, lengths.sum()).astype(np.int32)
    return Encoded(tokens, np.concatenate([[0], np.cumsum(lengths)]), None, 0)


def _encoded(model: str, path: str) -> Encoded:
    from w2s_fast.models import load_tokenizer
    from w2s_fast.training import encode

    lines = [line.partition("\t")[0] for line in Path(path).read_text().splitlines() if line]
    return encode(load_tokenizer(ModelConfig(model)), Texts(lines), 512)


def _classifier(source: str | None) -> Any:
    from transformers import AutoModel, BertConfig

    from w2s_fast.models.classifier import Classifier

    torch.manual_seed(0)
    config = BertConfig(intermediate_size=1536, **_BACKBONE)
    base = AutoModel.from_config(config) if source is None else AutoModel.from_pretrained(source)
    return Classifier(base, 2, "mean", "small")


# Several processes ----------------------------------------------------------------------------


def exchange(a: argparse.Namespace) -> Iterator[Row]:
    """Yield the step time with a threshold over all processes, and with one per process."""
    for size in (2, 4):
        job = {"part": "exchange", "steps": 3 if a.quick else 12, "rounds": 1 if a.quick else 20}
        times = _start(size, job)
        for provider, ms in times.items():
            yield _row("exchange", f"{size} ranks", 32, provider, wall_ms=ms,
                       ratio_to_ours=ms / times["exact"])  # fmt: skip


def memory(a: argparse.Namespace) -> Iterator[Row]:
    """Yield the peak memory of a process at ZeRO-3, measured and estimated."""
    with tempfile.TemporaryDirectory() as folder:
        for size in (1, 2):
            peaks = _start(size, {"part": "memory", "quick": a.quick, "folder": folder})
            for provider, mib in peaks.items():
                yield _row("memory", f"zero 3, {size} ranks", 8, provider, peak_mib=mib,
                           ratio_to_plan=mib / peaks["plan"])  # fmt: skip


def _start(size: int, job: dict[str, Any]) -> dict[str, float]:
    shared = child_environment(
        OMP_NUM_THREADS="1", WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()),
    )  # fmt: skip
    if job["part"] == "memory":  # return freed memory; the C library's heap would keep some
        shared |= {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    command = [sys.executable, "-m", "bench", "scale", "--rank", json.dumps(job)]
    ranks = [
        subprocess.Popen(command, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)},
                         stdout=subprocess.PIPE, text=True)
        for r in range(size)
    ]  # fmt: skip
    outputs = [p.communicate()[0] for p in ranks]
    if any(p.returncode for p in ranks):
        raise SystemExit(f"bench: {job['part']} on {size} processes failed")
    return json.loads(outputs[0].splitlines()[-1])


def _rank(job: dict[str, Any]) -> int:
    world = init_distributed(300)
    numbers = _exchange_rank(job) if job["part"] == "exchange" else _memory_rank(job)
    if world.is_main_process:
        print(json.dumps(numbers))
    return exit_process(0)


def _exchange_rank(job: dict[str, Any]) -> dict[str, float]:
    from transformers import LlamaConfig, LlamaModel

    from w2s_fast.models.classifier import Classifier

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=1000, intermediate_size=512, use_cache=False,
                         hidden_size=256, num_hidden_layers=4, num_attention_heads=4)  # fmt: skip
    model = Classifier(LlamaModel(config), 2, "last", "small")
    n = 16 * get_world().size
    data = Encoded(np.full(n * 64, 7, np.int32), np.arange(n + 1) * 64, None, 0)
    p = np.random.default_rng(0).uniform(size=n)
    soft = np.stack([1 - p, p], 1)
    times: dict[str, list[float]] = {"exact": [], "microbatch": []}
    for i in range(job["rounds"]):
        modes = ("exact", "microbatch") if i % 2 else ("microbatch", "exact")
        for mode in modes:
            cfg = TrainConfig(epochs=job["steps"], batch_size=n, lr=1e-5, threshold_scope=mode)
            ms = 1e3 * train(model, data, soft, make_loss("logconf"), cfg, 0)["seconds"]
            times[mode].append(ms / job["steps"])
    # Processes that share cores wait for each other, so the minimum over rounds depends on chance.
    return {mode: float(np.median(ms)) for mode, ms in times.items()}


def _memory_rank(job: dict[str, Any]) -> dict[str, float]:
    from transformers import AutoModel, LlamaConfig

    from w2s_fast.cli.estimate import estimate_step
    from w2s_fast.config import RunConfig
    from w2s_fast.models import build_model
    from w2s_fast.training.deepspeed.partition import partitioned_init
    from w2s_fast.training.deepspeed.setup import init_deepspeed

    world, folder = get_world(), Path(job["folder"]) / "model"
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = sizes if job["quick"] else _LARGE
    config = LlamaConfig(vocab_size=8000, intermediate_size=2 * sizes["hidden_size"], **sizes)
    if world.is_main_process and not folder.exists():
        AutoModel.from_config(config).save_pretrained(folder)
    world.barrier()
    cfg = TrainConfig(epochs=1, batch_size=4 * world.size, zero_stage=3, lr=1e-5)
    student = ModelConfig(str(folder))
    run = dataclasses.replace(RunConfig(), student=student, student_train=cfg)
    estimated = estimate_step(run, world.size, 64).total / 2**20
    init_deepspeed(300)

    class Tokens:
        def __len__(self) -> int:
            return 100

    torch.ones(10, requires_grad=True).sum().backward()  # initializes what is lazy
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    with partitioned_init(cfg, "fp32", "cpu"):
        model = build_model(student, 2, Tokens(), 0)
    n = 16 * world.size
    data = Encoded(np.full(n * 64, 7, np.int32), np.arange(n + 1) * 64, None, 0)
    train(model, data, np.full((n, 2), 0.5), make_loss("xent"), cfg, 0)
    time.sleep(0.1)
    peaks = world.all_gather_object(_resident("VmHWM") - before)
    return {"measured": max(peaks), "plan": estimated}


def _resident(name: str) -> float:
    """Return a field of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


_PARTS = {"labelling": labelling, "exchange": exchange, "memory": memory}
