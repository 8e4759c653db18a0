"""Sweeps at toy size: every stage once, in parallel, through kills and failures; and what they say.

Nothing here is a claim about generalization.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import itertools
import json
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ranks
from rich.console import Console
from scipy.stats import wilcoxon

import w2s_fast
from w2s_fast.cli.main import main
from w2s_fast.cli.parse import load
from w2s_fast.config import RunConfig, from_dict, to_yaml
from w2s_fast.errors import W2SError
from w2s_fast.sweeps import SweepConfig
from w2s_fast.sweeps.devices import worker_environments
from w2s_fast.sweeps.graph import make_graph
from w2s_fast.sweeps.grid import make_cells
from w2s_fast.sweeps.statistics import comparisons, medians, sign_flip
from w2s_fast.sweeps.sweep_figure import cells_without_pgr, sweep_figure
from w2s_fast.sweeps.sweep_files import to_csv
from w2s_fast.sweeps.sweep_tables import notes, print_sweep

SCRATCH = "scratch:hidden=8,heads=2,lr=1e-3"


def tiny(out: Path, **changes: Any) -> SweepConfig:
    """Return a sweep of seconds: two supervisors, one student, two losses, two seeds."""
    train = {"epochs": 2, "batch_size": 8, "lr": 0.05, "checkpoint_every": 2}
    run = from_dict(
        {
            "task": {"n_weak": 40, "n_transfer": 64, "n_test": 60},
            "weak_train": train,
            "student_train": train,
            "losses": ["xent", "logconf"],
            "seeds": [0, 1],
            "threads": 1,
        }
    )
    plain = {"run": run, "weak_models": ("bow", SCRATCH), "student_models": ("bow",)}
    return SweepConfig(**{**plain, "devices": ("cpu",), "output_dir": str(out), **changes})


def comparable(out: Path) -> dict[str, Any]:
    """Return what must be equal between equal sweeps: everything but folders, times and machine."""
    found = json.loads((out / "sweep.json").read_text())
    digests = {}
    for cell in found["cells"]:
        facts = json.loads((out / cell["results"]).read_text())["provenance"]
        digests[cell["name"]] = {name: s["digest"] for name, s in facts["stages"].items()}
    kept = ("cells", "failed", "medians", "comparisons", "stages")
    return {k: found[k] for k in kept} | {"digests": digests}


def stages(cache: Path) -> Counter[str]:
    """Return how many folders of each stage the cache holds."""
    return Counter(p.name.rpartition("-")[0] for p in cache.iterdir() if p.name[0] != ".")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepConfig, dict[str, Any]]:
    """One sweep, one process at a time."""
    cfg = tiny(tmp_path_factory.mktemp("serial"))
    return cfg, w2s_fast.sweep(cfg)


def test_shared_stages_are_computed_once(done: tuple[SweepConfig, dict[str, Any]]) -> None:
    cfg, results = done
    assert results["failed"] == {} and results["stages"] == {"distinct": 20, "total": 22}
    assert stages(Path(cfg.output_dir) / "cache") == {
        "weak": 4, "labels": 4, "ceiling": 2, "student": 8, "report": 2
    }  # fmt: skip
    assert [(c["weak"], c["student"], c["same"]) for c in results["cells"]] == [
        ("bow", "bow", True), ("scratch", "bow", False)
    ]  # fmt: skip
    ceilings = [{r["seed"]: r["ceiling"] for r in c["runs"]} for c in results["cells"]]
    assert ceilings[0] == ceilings[1]


def test_a_cell_is_the_run_of_its_file(
    done: tuple[SweepConfig, dict[str, Any]], tmp_path: Path
) -> None:
    """``w2s-fast run`` with the file of a cell finds every stage and scores the same."""
    cfg, results = done
    folder = Path(cfg.output_dir) / "cells" / results["cells"][1]["name"]
    alone = load(RunConfig, ["--out", str(tmp_path)], [folder / "run.yaml"])
    assert alone.weak.hidden == 8 and alone.weak_train.lr == 1e-3
    assert alone.student_train.lr == 0.05
    found = w2s_fast.run(alone)
    assert all(s["reused"] for s in found["provenance"]["stages"].values())
    stored = json.loads((folder / "results.json").read_text())
    assert found["runs"] == stored["runs"] == results["cells"][1]["runs"]
    assert found["summary"] == results["cells"][1]["summary"]


@pytest.mark.slow
def test_kill_then_the_same_command_in_parallel(
    done: tuple[SweepConfig, dict[str, Any]], tmp_path: Path
) -> None:
    """Two processes that are killed, with their parent, leave what one then finishes.

    The end is that of one process which was left alone.
    """
    cfg, _ = done
    killed = dataclasses.replace(cfg, output_dir=str(tmp_path / "out"), devices=("cpu", "cpu"))
    (tmp_path / "sweep.yaml").write_text(to_yaml(killed))
    command = ["sweep", "--quiet", "--config", str(tmp_path / "sweep.yaml")]
    process = ranks.program("w2s_fast", *command)
    cache, deadline = tmp_path / "out" / "cache", time.monotonic() + 120
    while not any(cache.glob("student-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a worker outlived the sweep"
        time.sleep(0.02)
    assert children and not (tmp_path / "out" / "sweep.json").exists()
    assert stages(cache).total() < 20
    assert main([*command, "--devices", "cpu"]) == 0
    assert comparable(tmp_path / "out") == comparable(Path(cfg.output_dir))


def test_a_cell_that_fails_costs_itself(
    done: tuple[SweepConfig, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, results = done
    bad = "scratch:hidden=8,heads=2,lr=1e30"
    more = dataclasses.replace(
        cfg,
        weak_models=(bad, "bow"),
        output_dir=str(tmp_path),
        cache_dir=str(Path(cfg.output_dir) / "cache"),
    )
    (tmp_path / "sweep.yaml").write_text(to_yaml(more))
    command = ["sweep", "--config", str(tmp_path / "sweep.yaml")]
    assert main(command) == 1
    streams = capsys.readouterr()
    assert streams.err.count("\n") == 2
    assert "✓ agreement--bow--bow  stored" in streams.err
    assert "✗ agreement--scratch--bow  weak/0: " in streams.err
    assert "1 of 2 cells failed; the same command tries them again" in streams.out
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert list(found["failed"]) == ["agreement--scratch--bow"]
    assert "use a smaller lr" in found["failed"]["agreement--scratch--bow"]
    assert [c["runs"] for c in found["cells"]] == [results["cells"][0]["runs"]]


def test_the_plan_is_told_before(
    done: tuple[SweepConfig, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cfg, _ = done
    path = tmp_path / "sweep.yaml"
    path.write_text(to_yaml(cfg))
    args = ["sweep", "--config", str(path), "--out", str(tmp_path / "out")]
    assert main([*args, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "agreement--bow--bow      11 stages",
        "agreement--scratch--bow  11 stages, 2 shared with cells above",
        "",
        "2 cells of 2 seeds: 20 different stages, 22 without sharing",
    ]
    assert not (tmp_path / "out").exists()
    assert main([*args, "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert shown == to_yaml(dataclasses.replace(cfg, output_dir=str(tmp_path / "out")))
    assert main(["sweep", "--help"]) == 0
    text = capsys.readouterr().out
    assert "w2s-fast sweep" in text and "--run.student_train.lr" in text and "--dry-run" in text


def test_smaller_pairs_names_and_the_settings_of_each_cell(tmp_path: Path) -> None:
    models = ("bow", "scratch:hidden=8", "scratch:hidden=16,epochs=7")
    cfg = tiny(
        tmp_path,
        tasks=("agreement", "agreement:n_test=30"),
        weak_models=models[:2],
        student_models=models,
        pairs="smaller",
    )
    cells = make_cells(cfg)
    assert [(c.weak, c.student) for c in cells[:5]] == [
        ("bow", "bow"), ("bow", models[1]), ("bow", models[2]),
        (models[1], models[1]), (models[1], models[2]),
    ]  # fmt: skip
    assert [c.cfg.task.n_test for c in cells] == [60] * 5 + [30] * 5
    assert (cells[2].cfg.student.hidden, cells[2].cfg.student_train.epochs) == (16, 7)
    assert cells[2].name == "agreement--bow--scratch-hidden=16-epochs=7"
    assert cells[7].name == "agreement-n_test=30--bow--scratch-hidden=16-epochs=7"
    assert len({c.name for c in cells}) == len({c.cfg.output_dir for c in cells}) == 10
    assert {c.cfg.cache_dir for c in cells} == {str(tmp_path / "cache")}
    both = ("/a/gpt2", "/b/gpt2")
    two = make_cells(tiny(tmp_path, weak_models=("bow",), student_models=both))
    assert [c.student for c in two] == list(both)
    long = tuple(f"/{i}{'x' * 200}/{'y' * 130}" for i in range(2))
    names = [c.name for c in make_cells(tiny(tmp_path, student_models=long))]
    assert len(set(names)) == 4 and max(map(len, names)) < 140


def test_a_change_of_data_is_seen_within_one_process(tmp_path: Path) -> None:
    """Keys are made of what files hold now, not of what they held when first read."""
    rows = [f"t{i} {'good' if i % 2 else 'bad'},{i % 2}" for i in range(60)]
    path, keys = tmp_path / "rows.csv", []
    for extra in ("", " indeed"):
        path.write_text("\n".join(["text,label", *(r.replace(",", f"{extra},") for r in rows)]))
        task = f"local:path={path},n_weak=10,n_transfer=10,n_test=10"
        cells = make_cells(tiny(tmp_path, tasks=(task,)))
        from w2s_fast.pipeline.context import load_data

        load_data.cache_clear()
        keys.append(set(make_graph(cells).nodes))
    assert len(keys[0]) == 20 and not keys[0] & keys[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ()}, "tasks is empty"),
        ({"student_models": ()}, "student_models is empty"),
        ({"weak_models": ("bow", "bow")}, "weak_models: 'bow' is given twice"),
        ({"weak_models": ("scratch", "scratch:hidden=32")}, "are the same run; drop one"),
        ({"weak_models": ("bwo",)}, "did you mean 'bow'?"),
        ({"weak_models": ("scratch:hiddenn=3",)}, "did you mean 'hidden'?"),
        ({"weak_models": ("scratch:lr=fast",)}, "lr is 'fast'; expected float"),
        ({"tasks": ("agrement",)}, "did you mean 'agreement'?"),
        ({"tasks": ("agreement:n_tset=3",)}, "did you mean 'n_test'?"),
        ({"tasks": ("local:path=nowhere.csv",)}, "needs a tokenizer"),
        ({"devices": ("gpu:0",)}, "expected cpu or cuda:NUMBER"),
        ({"devices": ("cuda:99",)}, "devices: 'cuda:99', but torch finds"),
        ({"devices": ("cpu", "cuda:0")}, "name devices of one kind"),
        ({"pairs": "smallest"}, "did you mean 'smaller'?"),
        ({"pairs": "smaller", "student_models": (SCRATCH,)}, "'bow' of weak_models is not in"),
        (
            {"run": RunConfig(output_dir="x")},
            "run.output_dir is decided by the sweep; set output_dir instead",
        ),
        ({"run": RunConfig(device="cpu")}, "set devices instead"),
        ({"run": RunConfig(losses=("xnet",))}, "did you mean 'xent'?"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_input_is_one_line_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(W2SError) as err:
        w2s_fast.sweep(tiny(tmp_path / "out", **changes))
    assert words in str(err.value) and "\n" not in str(err.value)
    assert not (tmp_path / "out").exists()


def test_files_and_options_are_as_strict_as_those_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("tasks: [agreement]\nrun: {student_train: {lr: 0.1}}\n")
    args = ["--weak_models", "bow", "scratch:hidden=8,layers=2", "--run.seeds", "3", "4"]
    cfg = load(SweepConfig, args, [path])
    assert cfg.weak_models == ("bow", "scratch:hidden=8,layers=2") and cfg.run.seeds == (3, 4)
    assert cfg.run.student_train.lr == 0.1
    for text, words in (
        ("task: [x]", "did you mean 'tasks'?"),
        ("losses: [xent]", "did you mean 'run.losses'?"),
        ("run: {studnet: {}}\nrun: 3", "run=3: expected a block"),
    ):
        path.write_text(text)
        with pytest.raises(W2SError) as err:
            load(SweepConfig, [], [path])
        assert words in str(err.value) and "\n" not in str(err.value)


def test_processes_see_the_device_of_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = make_cells(SweepConfig())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    wanted = [{"CUDA_VISIBLE_DEVICES": n} for n in ("1", "0")]
    assert worker_environments(("cuda:1", "cuda:0"), cells) == wanted
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert worker_environments(("cuda:1",), cells) == [{"CUDA_VISIBLE_DEVICES": "7"}]
    assert worker_environments(("cpu", "cpu"), cells) == [{}, {}]


def _cell(task: str, weak: str, accuracies: dict[str, list[float | None]]) -> dict[str, Any]:
    """A cell of floor .6 and .62, ceiling .8 and .84, with students of these accuracies."""
    floors, tops, runs, summary = (0.6, 0.62), (0.8, 0.84), [], []
    for name, values in accuracies.items():
        who = {"name": name, "method": "naive", "loss": name}
        for seed, value in enumerate(values):
            assert value is not None
            gap = tops[seed] - floors[seed]
            runs.append(
                {**who, "seed": seed, "weak": floors[seed], "student": value, "pgr_low": None,
                 "ceiling": tops[seed], "pgr": (value - floors[seed]) / gap}
            )  # fmt: skip
        summary.append(who)
    return {"task": task, "weak": weak, "student": "big", "same": weak == "big", "runs": runs,
            "summary": summary}  # fmt: skip


def test_medians_with_and_without_refusals() -> None:
    one = _cell("a", "small", {"xent": [0.7, 0.73]})
    two = _cell("a", "big", {"xent": [0.6, 0.62]})
    other = _cell("b", "small", {"xent": [0.8, 0.84]})
    other["runs"][0]["pgr"] = None
    a, b, everything = medians([one, two, other])
    assert (a["task"], b["task"], everything["task"]) == ("a", "b", None)
    assert a["median"] == pytest.approx(0.25) and (a["n"], a["refused"]) == (4, 0)
    # means of floor and ceiling: .61 and .82, and the pair of equal models is left out
    assert a["median_openai"] == pytest.approx((0.09 / 0.21 + 0.12 / 0.21) / 2)
    assert a["n_openai"] == 2 and (b["n"], b["refused"]) == (1, 1) and b["n_openai"] == 2
    assert everything["median"] == pytest.approx(0.5) and everything["n"] == 5


def test_the_comparison_pairs_cells_and_seeds_and_counts_units() -> None:
    cells = [
        _cell("a", "small", {"focal": [0.71, 0.70], "xent": [0.70, 0.68]}),
        _cell("a", "other", {"focal": [0.70, 0.70], "xent": [0.69, 0.71]}),
        _cell("b", "small", {"focal": [0.75, 0.70], "xent": [0.70, 0.70]}),
    ]
    (found,) = comparisons(cells)
    assert found["name"] == "focal" and (found["wins"], found["pairs"]) == (4, 6)
    assert found["difference"] == pytest.approx((0.01 + 0.02 + 0.01 - 0.01 + 0.05 + 0) / 6)
    assert found["units"] == 4
    # sums of units: .02, .01, .05, 0; at least .08 only with the first three positive: 2 of 16
    assert found["p"] == pytest.approx(2 / 16)
    assert comparisons([_cell("a", "small", {"focal": [0.7, 0.7]})]) == []


def test_sign_flips_against_scipy_and_by_hand() -> None:
    """Of the numbers 1 to n, the sum is the signed-rank statistic, whose exact p scipy knows."""
    ranks = np.array([1, -2, 3, 4, -5, 6, 7, 8], dtype=float)
    expected = wilcoxon(ranks, alternative="greater", method="exact").pvalue
    assert sign_flip(ranks.tolist(), range(8)) == pytest.approx(expected)
    assert sign_flip([0.1] * 5, range(5)) == pytest.approx(1 / 32)
    assert sign_flip([0.1], [0]) == 0.5 and sign_flip([-0.1], [0]) == sign_flip([0.0], [0]) == 1
    rng = np.random.default_rng(0)
    values, units = rng.normal(0.2, 1, 12), np.repeat(np.arange(4), 3)
    sums = values.reshape(4, 3).sum(1)
    every = [np.dot(signs, sums) for signs in itertools.product((1, -1), repeat=4)]
    by_hand = np.mean([v >= sums.sum() - 1e-12 for v in every])
    assert sign_flip(values.tolist(), units.tolist()) == pytest.approx(by_hand)
    many = rng.normal(0.2, 1, 40)
    assert sign_flip(many.tolist(), range(40)) == sign_flip(many.tolist(), range(40)) > 0


def _refuse(results: dict[str, Any], at: int) -> dict[str, Any]:
    """The same results with every PGR of one cell refused, and with none refused elsewhere."""
    found = copy.deepcopy(results)
    for i, cell in enumerate(found["cells"]):
        value = None if i == at else 0.5
        for row in cell["runs"]:
            row |= {"pgr": value, "pgr_low": value, "pgr_high": value, "refused": None}
        for row in cell["summary"]:
            lost = {"refused": "no PGR: why" if i == at else None, "seeds": 0 if i == at else 2}
            row |= {"pgr_mean": value, "pgr_low": value, "pgr_high": value, **lost}
    return {**found, "medians": medians(found["cells"])}


def test_the_table_says_what_the_numbers_say(done: tuple[SweepConfig, dict[str, Any]]) -> None:
    found = _refuse(done[1], 0)
    found["failed"] = {"agreement--x--y": "weak/0: no space"}
    stream = io.StringIO()
    print_sweep(found, Console(file=stream, width=80))
    text = stream.getvalue()
    table = text.partition("* agreement with")[0]
    assert len(re.findall(r"\d\s+–\s+–\s+\d", table)) == 2 and table.count("0.50 – 0.50") == 2
    row = found["cells"][1]["summary"][0]
    numbers = [row[k] for k in ("weak", "student", "ceiling")]
    numbers += [row["agreement"]["weak_right"], row["agreement"]["weak_wrong"]]
    cell = table.split("agreement, scratch")[1]
    line = next(line for line in cell.splitlines() if "xent" in line)
    assert re.findall(r"\d\.\d{3}", line) == [f"{v:.3f}" for v in numbers]
    assert notes(found) == ["agreement, bow → bow: no PGR: why"] and notes(found)[0] in text
    assert "failed: agreement--x--y: weak/0: no space" in text
    (against,) = found["comparisons"]
    assert f"{against['difference']:+.4f}" in text and f"{against['p']:.2g}" in text
    assert max(len(line) for line in table.splitlines()) <= 80


def test_the_csv_has_a_row_a_run(done: tuple[SweepConfig, dict[str, Any]]) -> None:
    cfg, results = done
    text = (Path(cfg.output_dir) / "sweep.csv").read_text()
    assert text == to_csv(results)
    rows = list(csv.DictReader(io.StringIO(text)))
    runs = [(cell, run) for cell in results["cells"] for run in cell["runs"]]
    assert len(rows) == len(runs) == 8
    for row, (cell, run) in zip(rows, runs, strict=True):
        assert (row["weak_model"], row["name"]) == (cell["weak"], run["name"])
        assert int(row["seed"]) == run["seed"] and float(row["student"]) == run["student"]
        assert row["pgr"] == ("" if run["pgr"] is None else str(run["pgr"]))
        assert float(row["agreement_all"]) == run["agreement"]["all"]


@pytest.mark.parametrize("cells", [2, 40])
def test_the_plot_lists_what_it_cannot_show(
    done: tuple[SweepConfig, dict[str, Any]], cells: int
) -> None:
    found = _refuse(done[1], 0)
    found["cells"] = found["cells"] * (cells // 2)
    image = sweep_figure(found, "png")
    assert image.startswith(b"\x89PNG") and len(image) > 20_000
    assert sweep_figure(found, "svg") == sweep_figure(found, "svg")
    text = cells_without_pgr(found["cells"])
    assert text.startswith("PGR not reported, the gap is too small: agreement, bow → bow")
    assert ("and 14 more" in " ".join(text.split())) == (cells == 40)
    nothing = {**found, "cells": found["cells"][:1]}
    assert sweep_figure(nothing, "png") != image
    shown = {**found, "cells": found["cells"][1:2]}
    assert cells_without_pgr(shown["cells"]) == ""
