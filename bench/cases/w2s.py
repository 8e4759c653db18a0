"""``python -m bench w2s``: weak-to-strong experiments whose results docs/results.md quotes.

They measure PGR over seeds, with intervals, not speed. ``agreement`` and ``agreement_noise`` need
no data; the others read real data that is not part of the repository, and a pretrained student:

    python -m bench w2s agreement agreement_noise --record
    python -m bench w2s sst2 cola safety hh --data DIR --student DIR --record
    python -m bench w2s agreement --rescore    # intervals and comparisons of the committed runs

The data folder holds sst2/train.tsv, cola/in_domain_train.tsv, safety/safety.csv and
hh_single_turn/harmless_train_w2s.jsonl as they are published.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness.environment import ROOT, environment
from bench.harness.row_files import RESULTS, write_results
from w2s_fast import metrics
from w2s_fast.pipeline import statistics
from w2s_fast.report.figure import results_figure
from w2s_fast.report.model_rows import (
    NOT_REPORTED,
    difference_cells,
    format_interval,
    format_number,
    level_text,
)

FOLDER = RESULTS / "w2s"
PAGE = "docs/results.md"
REAL = ("sst2", "cola", "safety", "hh")
EMBEDDED = ("agreement", "agreement_noise")
NAMES = (*EMBEDDED, *REAL)
MODELS = ("weak", "student", "ceiling")
COMMITTED = ("design", "differences", "runs", "summary", "controls", "gold")
_REAL_METHODS = (
    "probe@xent", "probe@logconf", "probe@logconf_openai", "probe@gce", "confident|probe@xent",
    "ensemble|probe@xent", "strong_to_strong|probe@xent", "probe_filter:probe=knn|probe@xent",
    "probe_relabel:probe=logreg|probe@xent", "small_loss|probe@xent", "conformal|probe@xent",
    "early_stop|probe@xent", "consistent|probe@xent",
)  # fmt: skip


# Students and labels that resist noise, averaged weights and heads of their own: as many methods
# as the table of `agreement` would make illegible.
_NOISE_METHODS = (
    "naive", "nested_dropout", "co_teaching", "mean_teacher", "fixmatch", "self_training", "mixup",
    "anchor", "soup", "greedy_soup", "interpolate", "mixup|interpolate@smoothing", "low_rank",
    "matryoshka", "projection_head", "prototype_head", "prototype_head:train=true", "prototype",
    "debias", "confidence_weighted", "ensem_w2s", "bayesian", "bayesian@evidential",
    "strong_to_strong:rounds=4,stop=agreement",
)  # fmt: skip


def agreement_noise() -> Any:
    """Return a run of the embedded task over five seeds, with methods against noisy labels."""
    from w2s_fast.config import RunConfig

    methods = tuple(m if "@" in m else f"{m}@xent" for m in _NOISE_METHODS)
    return RunConfig(losses=("xent",), methods=methods, seeds=(0, 1, 2, 3, 4))


def agreement() -> Any:
    """Return a run of the embedded task over five seeds, with every kind of method."""
    from w2s_fast.config import RunConfig

    return RunConfig(
        losses=("xent", "logconf"),
        methods=(
            "naive", "bootstrap", "ensemble", "strong_to_strong@xent", "early_stop@xent",
            "elicit@xent", "posterior@xent", "combine@xent",
        ),
        intermediate_models=("scratch:hidden=64,layers=2",),
        seeds=(0, 1, 2, 3, 4),
        control=True,
    )  # fmt: skip


def real(name: str, data: Path, student: Path) -> Any:
    """Return a run in which a bag of words supervises the head of a frozen sentence encoder.

    Five seeds. The recipe is that of Burns et al. for linear probes (batches of 128, learning
    rate 1e-3), for 100 epochs.
    """
    from w2s_fast.config import RunConfig
    from w2s_fast.models import ModelConfig
    from w2s_fast.tasks import TaskConfig
    from w2s_fast.training import TrainConfig

    sizes = {"n_weak": 500, "n_transfer": 1000, "n_test": 1000}
    # Pairs are harder: with 1000 of them the student's ceiling is the weak model's accuracy.
    pairs = {"n_weak": 250, "n_transfer": 2500, "n_test": 1000}
    tasks = {
        "sst2": TaskConfig("local", str(data / "sst2/train.tsv"), text="0", label="1", **sizes),
        "cola": TaskConfig(
            "local", str(data / "cola/in_domain_train.tsv"), text="3", label="1", **sizes
        ),
        "safety": TaskConfig("wts_safety", str(data / "safety/safety.csv"), **sizes),
        "hh": TaskConfig("pairs", str(data / "hh_single_turn/harmless_train_w2s.jsonl"), **pairs),
    }
    return RunConfig(
        task=tasks[name],
        weak=ModelConfig("bow"),
        student=ModelConfig(str(student), pooling="mean"),
        weak_train=TrainConfig(epochs=10, lr=0.1, max_length=128),
        student_train=TrainConfig(epochs=100, lr=1e-3, batch_size=128, max_length=128),
        losses=("xent",),
        methods=_REAL_METHODS,
        seeds=(0, 1, 2, 3, 4),
    )


def measure(name: str, cfg: Any, out: Path) -> dict[str, Any]:
    """Run one experiment and return the part of its results that is committed."""
    from w2s_fast.pipeline import run

    results = run(
        replace(cfg, output_dir=str(out / name), cache_dir=str(out / "cache")), quiet=False
    )
    config = {**results["provenance"]["config"], "output_dir": "out", "cache_dir": None}
    blocks = {key: results[key] for key in COMMITTED}
    return {"name": name, "environment": environment(), "config": config, **blocks}


def with_statistics(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return results whose intervals and comparisons are computed again from their runs.

    Seeds have test items of their own in all of these experiments.
    """
    accuracy = {
        s["name"]: np.array(
            [[r[m] for m in MODELS] for r in results["runs"] if r["name"] == s["name"]]
        )[None]
        for s in results["summary"]
    }
    n_items = results["runs"][0]["n_test"]
    runs = {name: metrics.Runs(a) for name, a in accuracy.items()}
    summary = [
        {**s, **statistics.pgr_over_runs(runs[s["name"]], n_items=n_items)}
        for s in results["summary"]
    ]
    baseline = statistics.baseline_name(
        {s["name"]: (s["method"], s["loss"]) for s in results["summary"]}
    )
    differences = {
        name: metrics.paired_difference(
            metrics.Runs(np.stack([a[..., 1], accuracy[baseline][..., 1]], -1))
        )
        for name, a in accuracy.items()
        if name != baseline
    }
    return {
        **results,
        "design": {**results["design"], **statistics.design(next(iter(runs.values())))},
        "differences": statistics.difference_rows(differences, baseline),
        "summary": [{**s, "seeds": runs[s["name"]].n_seeds} for s in summary],
    }


def table(results: Mapping[str, Any]) -> str:
    """Return the experiment as a Markdown table."""
    config, first = results["config"], results["summary"][0]
    n, seeds = results["runs"][0]["n_test"], len(config["seeds"])
    task, baseline = config["task"], results["differences"][0]["baseline"]
    bases = f"{counted(len(b), 'base')}, " if (b := config.get("student_bases")) else ""
    lines = [
        f"{bases}{counted(seeds, 'seed')}, {task['n_weak']} / {task['n_transfer']} / {n} items of "
        f"weak / transfer / test, weak model {first['weak']:.3f}, ceiling {first['ceiling']:.3f}"
        + _control(results)
        + ".",
        "",
        f"| method + loss | accuracy | − `{baseline}` | {level_text()} interval | p, Holm | PGR "
        f"| {level_text()} interval | agreement where weak is right / wrong |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for s in results["summary"]:
        lines.append(_line(results, s))
    for use in results["gold"]:
        lines += ["", f"`{use['name']}` used true labels: {use['use']}."]
    return "\n".join(lines) + "\n"


def counted(n: int, what: str) -> str:
    """Return a number with its noun: "1 seed", "3 seeds"."""
    return f"{n} {what}{'s' * (n != 1)}"


def _line(results: Mapping[str, Any], s: Mapping[str, Any]) -> str:
    pgr = NOT_REPORTED if s["pgr_mean"] is None else f"{s['pgr_mean']:.2f}"
    agreement = " / ".join(format_number(s["agreement"][k]) for k in ("weak_right", "weak_wrong"))
    compared = next((d for d in results["differences"] if d["name"] == s["name"]), None)
    difference, interval, _, p = difference_cells(compared) if compared else [""] * 4
    own = (
        f" (ceiling {s['ceiling']:.3f})" if s["ceiling"] != results["summary"][0]["ceiling"] else ""
    )
    name = s["name"].replace("|", "\\|")  # a bar would end the cell
    return (
        f"| `{name}`{own} | {s['student']:.3f} | {difference} | {interval} | {p} | {pgr} "
        f"| {format_interval(s)} | {agreement} |"
    )


def _control(results: Mapping[str, Any]) -> str:
    if not results["controls"]:
        return ""
    mean = sum(c["accuracy"] for c in results["controls"]) / len(results["controls"])
    first = results["summary"][0]
    pgr = (mean - first["weak"]) / (first["ceiling"] - first["weak"])
    return f", student without pretraining {mean:.3f} (PGR {pgr:.2f})"


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text in docs/results.md, one per experiment and a summary."""
    experiments = {name: (lambda _, name=name: _block(name)) for name in NAMES}
    return {"survives": lambda _: survivors(), **experiments}


def survivors() -> str:
    """Return a line for each difference to cross-entropy that differs from 0 after Holm."""
    lines = []
    for path in (FOLDER / f"{name}.json" for name in NAMES):
        for d in json.loads(path.read_text())["differences"] if path.exists() else []:
            if d["p_holm"] is not None and d["p_holm"] < 1 - metrics.LEVEL:
                lines.append(
                    f"- {path.stem}: `{d['name']}` {d['difference']:+.3f} "
                    f"({d['low']:+.3f} – {d['high']:+.3f}), p {d['p_holm']:.2g}"
                )
    return "\n".join(lines or ["- none"]) + "\n"


def _block(name: str) -> str:
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return f"No rows have been recorded yet: `python -m bench w2s {name} --record`.\n"
    results = json.loads(path.read_text())
    e = results["environment"]
    machine = f"{e['cpu']}, torch {e['torch']}, commit {e['git_sha']}."
    picture = f"![{name}: accuracy and gap recovered](img/w2s-{name}.svg)"
    return f"{table(results)}\n{picture}\n\n{machine}\n"


def figure(results: Mapping[str, Any], kind: str) -> bytes:
    """Return the figure of an experiment, titled by its name, as "svg" or "png" bytes."""
    config = results["config"]
    config = {**config, "task": {**config["task"], "name": results["name"]}}
    return results_figure({**results, "provenance": {"config": config}}, kind)


def save(results: Mapping[str, Any]) -> None:
    """Write the committed file and its picture."""
    write_results(FOLDER / f"{results['name']}.json", results)
    picture = ROOT / "docs" / "img" / f"w2s-{results['name']}.svg"
    picture.write_bytes(figure(results, "svg"))


def _config(name: str, options: argparse.Namespace) -> Any:
    if name in EMBEDDED:
        return agreement() if name == "agreement" else agreement_noise()
    return real(name, options.data, options.student)


def main(args: list[str]) -> int:
    """Run experiments; exit code 2 for bad input."""
    p = argparse.ArgumentParser(prog="python -m bench w2s", description=__doc__.splitlines()[0])
    p.add_argument("names", nargs="+", choices=NAMES)
    p.add_argument("--data", type=Path, help="folder of the real data sets")
    p.add_argument("--student", type=Path, help="folder of a transformers checkpoint")
    p.add_argument("--out", type=Path, default=Path("out/w2s"), help="%(default)s")
    p.add_argument(
        "--record", action="store_true", help="replace the committed results (clean tree)"
    )
    p.add_argument(
        "--rescore",
        action="store_true",
        help="compute intervals and comparisons of the committed runs again; nothing is trained",
    )
    options = p.parse_args(args)
    if options.rescore:
        for name in options.names:
            save(with_statistics(json.loads((FOLDER / f"{name}.json").read_text())))
        return 0
    if options.record and environment()["dirty"]:
        print("bench w2s: --record needs a clean tree; commit first", file=sys.stderr)
        return 2
    if set(options.names) & set(REAL) and not (options.data and options.student):
        print("bench w2s: real data needs --data DIR and --student DIR", file=sys.stderr)
        return 2
    for name in options.names:
        results = measure(name, _config(name, options), options.out)
        print(table(results))
        if options.record:
            save(results)
    return 0
