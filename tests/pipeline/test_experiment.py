"""The whole experiment at toy size: stages, re-use, kill and resume, workers, bad input.

Nothing here is a claim about generalization.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import ranks

from w2s_fast.config import RunConfig, from_dict, to_yaml
from w2s_fast.errors import W2SError
from w2s_fast.pipeline import label, run
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.pool import choose_parallelism

TRAINED = ("weak", "ceiling", "student", "control")
KILLED = ("pretrain", "weak", "labels", "ceiling", "student", "control", "report")
STAGES = (*KILLED, "supervisor_card")  # which takes too little time to be caught in it


def tiny(out: Path, **changes: Any) -> RunConfig:
    """Return a run of a few seconds: checkpoints every two steps, all stages."""
    pretrain = {"hidden": 16, "layers": 1, "heads": 2, "steps": 12, "batch_size": 4, "length": 32}
    train = {"batch_size": 8, "checkpoint_every": 2}
    values = {
        "task": {"n_weak": 40, "n_transfer": 64, "n_test": 60, "pretrain": pretrain},
        "weak": {"source": "scratch", "hidden": 16, "heads": 2},
        "student": {"source": "agreement-lm"},
        "weak_train": {"epochs": 3, **train},
        "student_train": {"epochs": 2, **train},
        "seeds": [0, 1],
        "control": True,
        "output_dir": str(out),
        "workers": 1,
        "threads": 1,
    }
    return from_dict({**values, **changes})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Any]]:
    """One straight run in this process."""
    cfg = tiny(tmp_path_factory.mktemp("straight"))
    return cfg, run(cfg)


def label_bytes(cfg: RunConfig) -> dict[int, dict[str, bytes]]:
    """Return the weak label files of each seed; every stage must be stored already."""
    return {s: {p.name: p.read_bytes() for p in path.iterdir()} for s, path in label(cfg).items()}


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """Return what must be equal between equal runs: everything but times and machine."""
    digests = {k: v["digest"] for k, v in results["provenance"]["stages"].items()}
    return {k: results[k] for k in ("runs", "summary", "controls")} | {"digests": digests}


@pytest.mark.slow
def test_results_have_the_promised_shape(done: tuple[RunConfig, dict[str, Any]]) -> None:
    cfg, results = done
    assert json.loads((Path(cfg.output_dir) / "results.json").read_text()) == results
    assert [(r["seed"], r["loss"]) for r in results["runs"]] == [
        (0, "xent"), (1, "xent"), (0, "logconf"), (1, "logconf")
    ]  # fmt: skip
    for r in results["runs"]:
        assert {"seed", "loss", "weak", "student", "ceiling", "pgr"} <= r.keys()
        assert (r["pgr"] is None) == (r["refused"] is not None) == (r["pgr_low"] is None)
    for s in results["summary"]:
        assert {"loss", "pgr_mean", "pgr_low", "pgr_high"} <= s.keys()
    facts = results["provenance"]
    assert facts["ops"]["cross_entropy"] and set(facts["ops"]["cross_entropy"]) <= {"cpp", "ref"}
    assert facts["config"]["seeds"] == [0, 1] and facts["versions"]["torch"]
    assert {"machine", "git", "backends"} <= facts.keys()
    assert {name.split("/")[0] for name in facts["stages"]} == set(STAGES)
    for name in ("plot.png", "plot.svg", "report.html"):
        assert (Path(cfg.output_dir) / name).stat().st_size > 5000


def test_scores_are_those_of_the_stored_predictions(
    done: tuple[RunConfig, dict[str, Any]],
) -> None:
    """Floor, student and ceiling are recomputed here from the Parquet files and gold labels."""
    cfg, results = done
    folders = {k: v["folder"] for k, v in results["provenance"]["stages"].items()}
    for r in results["runs"]:
        test = load_data(cfg.task, r["seed"]).test
        right = {}
        names = {"weak": f"weak/{r['seed']}", "ceiling": f"ceiling/{r['seed']}"}
        for role, name in {**names, "student": f"student/{r['seed']}/{r['loss']}"}.items():
            table = pq.read_table(cfg.store_dir / folders[name] / "test.parquet").to_pydict()
            assert table["id"] == list(test.ids)  # the same items for all three
            right[role] = np.array(table["probs"]).argmax(1) == test.labels
            assert r[role] == pytest.approx(right[role].mean())
        assert r["gap"] == pytest.approx(right["ceiling"].mean() - right["weak"].mean())


def test_weak_labels_are_soft_vectors_with_ids(done: tuple[RunConfig, dict[str, Any]]) -> None:
    cfg, _ = done
    for seed, path in label(cfg).items():
        table = pq.read_table(path)
        data = load_data(cfg.task, seed)
        assert table["id"].to_pylist() == list(data.transfer.ids)
        probs = np.array(table["probs"].to_pylist())
        assert probs.shape == (64, 2) and np.allclose(probs.sum(1), 1, atol=1e-6)
        assert not set(np.unique(probs)) <= {0.0, 1.0}


def test_a_second_run_computes_nothing(done: tuple[RunConfig, dict[str, Any]]) -> None:
    cfg, results = done
    again = run(cfg)
    assert all(s["reused"] for s in again["provenance"]["stages"].values())
    assert comparable(again) == comparable(results)


def test_a_new_loss_re_uses_every_label(
    done: tuple[RunConfig, dict[str, Any]], tmp_path: Path
) -> None:
    cfg, results = done
    wider = dataclasses.replace(
        cfg, losses=(*cfg.losses, "focal"), output_dir=str(tmp_path), cache_dir=str(cfg.store_dir)
    )
    again = run(wider)
    fresh = [k for k, v in again["provenance"]["stages"].items() if not v["reused"]]
    assert fresh == ["student/0/focal", "student/1/focal", "report"]
    assert again["runs"][:4] == results["runs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "again"),
    [
        (
            {"weak_train": {"lr": 9e-3}},
            {"weak", "labels", "supervisor_card", "student", "control", "report"},
        ),
        ({"student_train": {"lr": 9e-3}}, {"student", "ceiling", "control", "report"}),
        ({"task": {"language_seed": 1}}, set(STAGES)),
        ({"student_train": {"checkpoint_every": 5}}, set()),
        ({"workers": 2}, set()),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_only_what_depends_on_a_setting_is_computed_again(
    done: tuple[RunConfig, dict[str, Any]], tmp_path: Path, change: dict[str, Any], again: set[str]
) -> None:
    cfg, _ = done
    blocks = {
        name: dataclasses.replace(getattr(cfg, name), **value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    changed = dataclasses.replace(
        cfg,
        **{"output_dir": str(tmp_path), "cache_dir": str(cfg.store_dir), "workers": 1, **blocks},
    )
    if change == {"workers": 2}:  # nothing is left to compute, so no worker starts
        assert choose_parallelism(changed, cuda=False) == (2, 1)
    stages = run(changed)["provenance"]["stages"]
    assert {k.split("/")[0] for k, v in stages.items() if not v["reused"]} == again


def test_a_damaged_artefact_costs_only_itself(
    done: tuple[RunConfig, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, results = done
    folder = results["provenance"]["stages"]["labels/1"]["folder"]
    path = cfg.store_dir / folder / "labels" / "part-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = run(cfg)
    assert (
        "is damaged (labels/part-00000.parquet differs from its checksum)"
        in capsys.readouterr().err
    )
    stages = again["provenance"]["stages"]
    assert [k for k, v in stages.items() if not v["reused"]] == ["labels/1"]
    assert path.read_bytes() == whole and comparable(again) == comparable(results)


@pytest.mark.slow
def test_workers_and_caller_settings_change_nothing(
    done: tuple[RunConfig, dict[str, Any]], tmp_path: Path
) -> None:
    """Two processes, started from a script without a main guard, give the same bytes."""
    cfg, results = done
    (tmp_path / "run.yaml").write_text(to_yaml(dataclasses.replace(cfg, workers=2)))
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, w2s_fast\nfrom w2s_fast.cli.parse import load_config\n"
        "torch.manual_seed(5); torch.set_num_threads(2)\n"
        f"w2s_fast.run(load_config(['--out', {str(tmp_path)!r}], [{str(tmp_path / 'run.yaml')!r}]))"
    )
    subprocess.run([sys.executable, str(script)], check=True, timeout=200)
    again = json.loads((tmp_path / "results.json").read_text())
    assert comparable(again) == comparable(results)


def _start(cfg: RunConfig, stage: str) -> tuple[Any, list[int]]:
    """Start the run in its folder, wait until ``stage`` is being built; return its children."""
    process = ranks.program("w2s_fast", "run", "--quiet", "--config", _file(cfg))
    trains = stage in TRAINED
    pattern = f".{stage}-*/checkpoint/*" if trains else f".{stage}-*"
    deadline = time.monotonic() + 120
    while not any(cfg.store_dir.glob(pattern)):
        assert process.poll() is None, f"ended before stage {stage}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return process, [int(p) for p in tasks.read_text().split()]


def _file(cfg: RunConfig) -> str:
    path = Path(cfg.output_dir) / "run.yaml"
    path.write_text(to_yaml(cfg))
    return str(path)


def _wait_for_the_end_of(pids: list[int]) -> None:
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}/stat").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived the run"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "stages"), [(1, KILLED), (2, ("weak", "student"))], ids=["1 process", "2 workers"]
)
def test_kill_in_every_stage_then_the_same_command(
    done: tuple[RunConfig, dict[str, Any]], tmp_path: Path, workers: int, stages: tuple[str, ...]
) -> None:
    """One folder, killed once in each stage, ends like a run that was never disturbed."""
    cfg, results = done
    killed = dataclasses.replace(cfg, output_dir=str(tmp_path), workers=workers)
    for stage in stages:
        process, children = _start(killed, stage)
        assert len(children) == (workers if workers > 1 else 0) or stage == "weak"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        _wait_for_the_end_of(children)
    again = run(dataclasses.replace(killed, workers=1))
    assert comparable(again) == comparable(results)
    assert label_bytes(killed) == label_bytes(cfg)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line(tmp_path: Path) -> None:
    process, children = _start(tiny(tmp_path, workers=2), "weak")
    os.kill(children[0], signal.SIGKILL)
    errors, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and errors.count("\n") == 1
    assert "was killed by signal 9" in errors and "run again to continue" in errors
    _wait_for_the_end_of(children)


_LIMITED = """
import resource, sys
from w2s_fast.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
sys.exit(main(["run", "--quiet", "--config", sys.argv[1], "--student_train.lr", "1e-3"]))
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(
    done: tuple[RunConfig, dict[str, Any]], tmp_path: Path
) -> None:
    """No file may grow above 6 kB: weights do not fit, everything stored before stays."""
    cfg, results = done
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(cfg))
    failed = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(path)], capture_output=True, text=True, timeout=200
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith(
        "w2s-fast: error: ceiling/0: no space left while writing stage 'ceiling'"
    )
    assert failed.stderr.count("\n") == 1
    again = run(cfg)
    assert all(s["reused"] for s in again["provenance"]["stages"].values())
    assert comparable(again) == comparable(results)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_stage_is_one_line_that_names_it(tmp_path: Path, workers: int) -> None:
    cfg = tiny(tmp_path, workers=workers)
    diverges = dataclasses.replace(cfg.weak_train, lr=1e30)
    with pytest.raises(W2SError, match="^weak/[01]: .* smaller lr") as err:
        run(dataclasses.replace(cfg, weak_train=diverges))
    assert "\n" not in str(err.value)


def test_label_runs_only_what_labels_need(tmp_path: Path) -> None:
    paths = label(tiny(tmp_path))
    assert sorted(paths) == [0, 1] and all(p.parent.name == "labels" for p in paths.values())
    made = {p.name.split("-")[0] for p in (tmp_path / "cache").iterdir() if p.name[0] != "."}
    assert made == {"weak", "labels"}  # the supervisor is no pretrained model
