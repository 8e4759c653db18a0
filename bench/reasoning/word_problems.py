"""Texts of a weak model on the task `word_problems`, from three bases of the student.

``word_problems`` has both stages of weak-to-strong reasoning, with three seeds a base;
``contrasted`` the weak model's own texts and those that contrast it with itself before its training
(ConG), with one. The weak model starts from a small base that was pretrained for less long and
learns few true solutions. Sizes were chosen by floor, prompted and ceiling accuracy alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

from bench.cases import w2s
from bench.harness.environment import environment
from bench.harness.row_files import RESULTS, write_results
from w2s_fast.config import RunConfig, at_seed, run_seeds
from w2s_fast.models import ModelConfig
from w2s_fast.report.label_rows import label_lines
from w2s_fast.tasks import TaskConfig, TaskData, get_task
from w2s_fast.training import TrainConfig

FOLDER = RESULTS / "reasoning"
SHOTS = 4
_STAGE_ONE = "agreement_sft:rule=number"
_HYBRID = f"{_STAGE_ONE},iterations=2"
METHODS = {
    # Stage I of every set, its second iteration, stage II by DPO and by ORPO.
    "word_problems": (
        "naive",
        f"{_STAGE_ONE},sets=weak",
        f"{_STAGE_ONE},sets=in_context",
        _STAGE_ONE,
        _HYBRID,
        f"{_HYBRID}|contrast:rule=number,loss=dpo",
        f"{_HYBRID}|contrast:rule=number,loss=orpo",
    ),
    "contrasted": (
        "naive",
        "cong:strength=0,train=sft",
        "cong:train=sft",
        "cong:strength=1,train=sft",
        "cong",
    ),
}
SEEDS = {"word_problems": (0, 1, 2), "contrasted": (0,)}
# Heading in the table by base -> place of a method.
_SHOWN = {
    "word_problems": {
        "student of all weak labels": 0,
        "stage I, iteration 2": 4,
        "stage II, DPO": 5,
        "stage II, ORPO": 6,
    },
    "contrasted": {"student of all weak labels": 0, "contrasted": 2, "pairs": 4},
}


def configuration(name: str) -> RunConfig:
    """Return the run of an experiment, a key of ``METHODS``."""
    return RunConfig(
        task=TaskConfig("word_problems", n_weak=150, n_transfer=600, n_test=400, answer_tokens=36),
        weak=ModelConfig("word-problems-small-lm"),
        student=ModelConfig("word-problems-lm"),
        weak_train=TrainConfig(epochs=3, lr=1e-3, warmup_frac=0.1, clip_norm=1.0),
        student_train=TrainConfig(epochs=3, lr=1e-3, warmup_frac=0.1, clip_norm=1.0),
        losses=("xent",),
        methods=METHODS[name],
        student_bases=tuple(f"word-problems-lm:pretrain_seed={i}" for i in range(3)),
        seeds=SEEDS[name],
        workers=1,
        threads=1,
    )


def run(name: str, out: Path, record: bool) -> None:
    """Run an experiment, print its table, and commit its results with ``record``."""
    results = measure(name, out)
    print(table(results))
    if record:
        write_results(FOLDER / f"{name}.json", results)


def block(name: str) -> str:
    """Return the committed results of an experiment as Markdown."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        command = f"python -m bench reasoning --run DIR --experiments {name} --record"
        return f"No rows have been recorded yet: `{command}`.\n"
    return table(json.loads(path.read_text()))


def table(results: Mapping[str, Any]) -> str:
    """Return the experiment as Markdown: students, untrained bases, fates of the items."""
    first = {row["stage"]: row for row in reversed(results["text_labels"])}  # others repeat it
    lines = label_lines({"text_labels": list(reversed(first.values()))})
    fates = "".join(f"- {line}\n" for line in lines)
    e = results["environment"]
    return (
        f"{w2s.table(results)}\nAccuracy by base, means over its seeds:\n\n{_by_base(results)}\n"
        f"What became of the items, in all runs:\n\n{fates}\n"
        f"{e['cpu']}, torch {e['torch']}, commit {e['git_sha']}.\n"
    )


def _by_base(results: Mapping[str, Any]) -> str:
    """Return a row for each base: before its training, after the methods, and its ceiling."""
    names = [s["name"] for s in results["summary"]]
    shown = {title: names[at] for title, at in _SHOWN[results["name"]].items()}
    heads = ["base", "no examples", f"{SHOTS} examples", "weak model", *shown, "ceiling"]
    lines = [heads, ["---:"] * len(heads)]
    for base in sorted({row["base"] for row in results["prompted"]}):
        own = [row for row in results["prompted"] if row["base"] == base]
        seeds = {row["seed"] for row in own}
        runs = [run for run in results["runs"] if run["seed"] in seeds]
        before = [mean(r["accuracy"] for r in own if r["shots"] == s) for s in (0, SHOTS)]
        after = [mean(r["student"] for r in runs if r["name"] == name) for name in shown.values()]
        ends = [mean(r[model] for r in runs) for model in ("weak", "ceiling")]
        numbers = [*before, ends[0], *after, ends[1]]
        lines.append([str(base), *(f"{n:.3f}" for n in numbers)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def measure(name: str, out: Path) -> dict[str, Any]:
    """Run an experiment and return what is committed; the experiments of a folder share stages."""
    from w2s_fast import pipeline

    cfg = replace(configuration(name), output_dir=str(out / name), cache_dir=str(out / "cache"))
    results = pipeline.run(cfg, quiet=False)
    own: dict[str, Any] = {key: results[key] for key in (*w2s.COMMITTED, "text_labels")}
    for row in own["text_labels"]:
        row["report"] = {k: len(v) if isinstance(v, list | tuple) else v
                         for k, v in row["report"].items()}  # fmt: skip
    prompted = list(_prompted(cfg, results))
    return {
        "name": name, "environment": environment(),
        "config": {**results["provenance"]["config"], "output_dir": "out", "cache_dir": None},
        "prompted": prompted, **own,
    }  # fmt: skip


def _prompted(cfg: RunConfig, results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the accuracy of the untrained bases on the test items, with and without examples."""
    from w2s_fast.models import build_model, load_tokenizer

    stages = results["provenance"]["stages"]
    for seed in run_seeds(cfg):
        own = at_seed(cfg, seed)
        base = own.task.word_problems.pretrain.seed
        name = "/".join(["pretrain", "word-problems-lm", *([str(base)] if base else [])])
        model = ModelConfig(str(cfg.store_dir / stages[name]["folder"] / "model"))
        tokenizer = load_tokenizer(model)
        lm = build_model(model, 2, tokenizer, 0, kind="generation")
        data = get_task(own.task.name).load(own.task, seed)
        for shots in (0, SHOTS):
            accuracy = _accuracy(lm, tokenizer, data, shots, seed, cfg.task.answer_tokens)
            yield {"base": base, "seed": seed, "shots": shots, "accuracy": accuracy}


def _accuracy(lm: Any, tokenizer: Any, data: TaskData, shots: int, seed: int, room: int) -> float:
    from w2s_fast.sampling import GenerateSampler

    assert data.weak.answers is not None and data.test.answers is not None
    rows = Random(seed).sample(range(len(data.weak)), shots)
    shown = "".join(data.weak.texts[r] + data.weak.answers[r] + data.separator for r in rows)
    sampler = GenerateSampler(
        model=lm, tokenizer=tokenizer, max_new_tokens=room, temperature=0.0, max_length=512
    )
    texts = sampler.sample([shown + text for text in data.test.texts], 1)
    right = [data.agree(own, gold) for [own], gold in zip(texts, data.test.answers, strict=True)]
    return sum(right) / len(right)
