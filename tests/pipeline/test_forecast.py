"""A dry run tells what a run would compute, and neither computes nor writes anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.toy_run import config

import w2s_fast
from w2s_fast.cli.main import main
from w2s_fast.config import RunConfig, to_yaml
from w2s_fast.pipeline.forecast import Forecast, StageForecast, forecast
from w2s_fast.pipeline.jobs import Job
from w2s_fast.pipeline.stage_times import StageTimes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    cfg = config(tmp_path_factory.mktemp("run"))
    w2s_fast.run(cfg)
    return cfg


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))


def extended(cfg: RunConfig, **changes: object) -> RunConfig:
    return config(Path(cfg.output_dir), **changes)


def test_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = config(tmp_path / "out")
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(cfg))
    assert main(["run", "--config", str(path), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "student/0/xent" in text and "labels/0" in text and "unknown" in text
    assert "6 stages, 0 of them stored; the time of the rest is unknown" in text
    assert not Path(cfg.output_dir).exists()


def test_a_finished_run_has_nothing_left(finished: RunConfig) -> None:
    before = listing(Path(finished.output_dir))
    plan = forecast(finished)
    assert plan.remaining == [] and plan.seconds == 0
    assert {s.job.name for s in plan.stages} == {
        "weak/0", "labels/0", "supervisor_card/0", "ceiling/0", "student/0/xent", "report",
    }  # fmt: skip
    assert listing(Path(finished.output_dir)) == before


def test_seeds_and_losses_take_as_long_as_stored_ones(finished: RunConfig) -> None:
    plan = forecast(extended(finished, seeds=[0, 1], losses=["xent", "logconf"]))
    remaining = {s.job.name: s.seconds for s in plan.remaining}
    assert set(remaining) == {
        "weak/1", "labels/1", "supervisor_card/1", "ceiling/1", "student/1/xent",
        "student/0/logconf", "student/1/logconf", "report",
    }  # fmt: skip
    assert None not in remaining.values()
    assert remaining["student/1/logconf"] == remaining["student/1/xent"]


def test_other_hyper_parameters_take_an_unknown_time(finished: RunConfig) -> None:
    train = {"epochs": 5, "lr": 0.1, "batch_size": 16}
    plan = forecast(extended(finished, student_train=train))
    remaining = {s.job.name: s.seconds for s in plan.remaining}
    assert remaining["student/0/xent"] is None and remaining["ceiling/0"] is None
    assert "weak/0" not in remaining and remaining["report"] is not None


def test_damage_is_neither_repaired_nor_counted_as_stored(finished: RunConfig) -> None:
    (folder,) = finished.store_dir.glob("labels-*")
    (part,) = (folder / "labels").iterdir()
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    try:
        remaining = {s.job.name for s in forecast(finished).remaining}
        assert remaining == {"labels/0", "supervisor_card/0", "student/0/xent", "report"}
        assert part.read_bytes() == content[:-1]
    finally:
        part.write_bytes(content)


def test_a_checkpoint_of_an_interrupted_run_is_named(finished: RunConfig) -> None:
    (folder,) = finished.store_dir.glob("ceiling-*")
    hidden = folder.with_name(f".{folder.name}")
    folder.rename(hidden)
    (hidden / "checkpoint" / "step-00000002").mkdir(parents=True)
    try:
        stage = next(s for s in forecast(finished).stages if s.job.name == "ceiling/0")
        assert stage.started and not stage.stored and stage.seconds is not None
    finally:
        shutil.rmtree(hidden / "checkpoint")
        hidden.rename(folder)


def test_wrong_settings_fail_as_in_a_run(tmp_path: Path) -> None:
    train = {"batch_size": 16, "epochs": 1, "lr": 0.1, "zero_stage": 1, "offload_params": "cpu"}
    with pytest.raises(w2s_fast.W2SError):
        forecast(config(tmp_path / "out", student_train=train))
    train = {"batch_size": 16, "epochs": 1, "lr": 0.1, "gradient_checkpointing": True}
    with pytest.raises(w2s_fast.W2SError, match="has no gradient checkpointing"):
        forecast(config(tmp_path / "out", student_train=train))


def test_stages_that_wait_for_each_other_add_up() -> None:
    def stage(name: str, seconds: float | None, *needs: str) -> StageForecast:
        job = Job("weak", name, inputs=tuple((n, n) for n in needs))
        return StageForecast(job, False, False, seconds)

    chain = (stage("a", 10.0), stage("b", 20.0, "a"), stage("c", None, "b"), stage("d", 3.0))
    assert Forecast(chain, 4).seconds == 30
    assert Forecast(chain, 1).seconds == 33


def test_times_are_those_of_the_stages_most_alike(tmp_path: Path) -> None:
    def store(stage: str, seconds: float, **config: object) -> None:
        folder = tmp_path / f"{stage}-{seconds}"
        folder.mkdir()
        record = {"stage": stage, "config": config, "info": {"seconds": seconds}}
        (folder / "stage.json").write_text(json.dumps(record))

    trained = {"model": {"hidden": 8}, "train": {"epochs": 1}, "device": "cpu"}
    store("ceiling", 5.0, **trained, settings={"role": "student"}, seed=0)
    store("balance", 2.0, classes=2)
    store("balance", 4.0, classes=3)
    store("labels", 7.0, model={"hidden": 8}, max_length=9)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "stage.json").write_text("{")
    times = StageTimes(tmp_path)
    assert times.expect("student", {**trained, "settings": {"loss": "xent"}, "seed": 1}) == 5
    assert times.expect("student", {**trained, "train": {"epochs": 2}}) is None
    assert times.expect("balance", {"classes": 2}) == 2
    assert times.expect("balance", {"classes": 9}) == 3
    assert times.expect("labels", {"model": {"hidden": 9}, "max_length": 9}) is None
    store("student", 6.0, **trained, settings={"loss": "gce"}, seed=3)
    assert StageTimes(tmp_path).expect("student", {**trained, "settings": {}, "seed": 1}) == 6
