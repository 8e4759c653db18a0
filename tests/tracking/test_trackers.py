"""Trackers show what a training records, and change nothing of what is computed."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers.toy_run import config

import w2s_fast
from w2s_fast import W2SError
from w2s_fast.config import RunConfig, validate
from w2s_fast.tracking import TRACKERS, TrackingConfig, check_trackers
from w2s_fast.tracking.step_logger import step_logger
from w2s_fast.training import StepRecord

TAGS = {"loss", "threshold", "coefficient", "agreement", "grad_norm", "lr", "tokens_per_s",
        "peak_memory_mib"}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Any], dict]:
    """A configuration with TensorBoard, and the results of the run without and with it."""
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("runs")
    plain = w2s_fast.run(config(folder / "plain", losses=["logconf"]))
    cfg = config(folder / "tracked", losses=["logconf"], tracking={"trackers": ["tensorboard"]})
    return cfg, plain, w2s_fast.run(cfg)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.slow
def test_a_tracked_run_has_the_same_bits(runs: tuple) -> None:
    _, plain, tracked = runs
    facts = [results["provenance"]["stages"] for results in (plain, tracked)]
    digests = [{n: s["digest"] for n, s in stages.items()} for stages in facts]
    assert digests[0] == digests[1]
    folders = [{s["folder"] for s in stages.values()} for stages in facts]
    assert folders[0] == folders[1], "trackers are no part of what identifies a stage"
    for part in ("runs", "summary", "differences", "weak_labels"):
        assert plain[part] == tracked[part]


@pytest.mark.slow
def test_every_step_of_every_training_is_logged(runs: tuple) -> None:
    cfg, _, tracked = runs
    for name in ("weak/0", "student/0/logconf", "ceiling/0"):
        logged = scalars(cfg.tracking_dir / "tensorboard" / name)
        stage = tracked["provenance"]["stages"][name]["folder"]
        log = json.loads((cfg.store_dir / stage / "log.json").read_text())
        expected = TAGS if "logconf" in name else TAGS - {"threshold"}
        assert set(logged) | {"coefficient"} == expected | {"coefficient"}
        steps = list(range(1, log["steps"] + 1))
        for tag, series in (("loss", "losses"), ("agreement", "agreement"), ("lr", "lr")):
            assert [step for step, _ in logged[tag]] == steps
            assert [v for _, v in logged[tag]] == pytest.approx(log[series], rel=1e-6)
        assert all(value > 0 for _, value in logged["tokens_per_s"])
        assert all(1 < value < 1e6 for _, value in logged["peak_memory_mib"])


@pytest.mark.slow
def test_finished_stages_are_not_computed_again_for_a_tracker(runs: tuple, tmp_path: Path) -> None:
    cfg, plain, _ = runs
    again = config(
        tmp_path / "again", losses=["logconf"], cache_dir=plain["provenance"]["store"],
        tracking={"trackers": ["tensorboard"], "folder": str(tmp_path / "logs")},
    )  # fmt: skip
    results = w2s_fast.run(again)
    assert all(stage["reused"] for stage in results["provenance"]["stages"].values())
    assert not (tmp_path / "logs").exists()


def record(step: int, seconds: float, **values: float) -> StepRecord:
    nan = float("nan")
    own = {"loss": 0.5, "agreement": 1.0, "threshold": nan, "coefficient": nan, "grad_norm": nan}
    return StepRecord(step=step, lr=0.1, tokens=30, seconds=seconds, **{**own, **values})


class Recorder:
    """Stands for a tracker that fails at one step."""

    def __init__(self, fails_at: int = 0, fails_at_end: bool = False) -> None:
        self.values: list[tuple[int, dict[str, float]]] = []
        self.fails_at, self.fails_at_end, self.finished = fails_at, fails_at_end, 0

    def log(self, values: dict[str, float], step: int) -> None:
        if step == self.fails_at:
            raise OSError("disk full")
        self.values.append((step, values))

    def finish(self) -> None:
        self.finished += 1
        if self.fails_at_end:
            raise OSError("gone")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    """Recorders in place of the trackers of ``step_logger``, by kind."""
    made = {"tensorboard": Recorder(), "wandb": Recorder(fails_at=2)}
    monkeypatch.setattr("w2s_fast.tracking.step_logger._start", lambda kind, *_: made[kind])
    return made


def test_rates_and_undefined_numbers(recorder: dict[str, Recorder], tmp_path: Path) -> None:
    cfg = TrackingConfig(trackers=("tensorboard",))
    with step_logger(cfg, tmp_path, "weak/0", {}) as on_step:
        on_step(record(1, 2.0))
        on_step(record(2, 5.0, grad_norm=3.0))
    (one, first), (two, second) = recorder["tensorboard"].values
    assert (one, two) == (1, 2)
    assert first["tokens_per_s"] == 15 and second["tokens_per_s"] == 10
    assert "grad_norm" not in first and second["grad_norm"] == 3 and "threshold" not in second
    assert recorder["tensorboard"].finished == 1


def test_a_resumed_training_has_no_rate_at_its_first_step(
    recorder: dict[str, Recorder], tmp_path: Path
) -> None:
    with step_logger(TrackingConfig(("tensorboard",)), tmp_path, "weak/0", {}) as on_step:
        on_step(record(7, 100.0))
        on_step(record(8, 103.0))
    rates = [values.get("tokens_per_s") for _, values in recorder["tensorboard"].values]
    assert rates == [None, 10]


def test_a_tracker_that_fails_is_dropped_and_the_others_go_on(
    recorder: dict[str, Recorder], tmp_path: Path
) -> None:
    cfg = TrackingConfig(("tensorboard", "wandb"))
    with (
        warnings.catch_warnings(record=True) as caught,
        step_logger(cfg, tmp_path, "weak/0", {}) as on_step,
    ):
        warnings.simplefilter("always")
        for step in (1, 2, 3):
            on_step(record(step, float(step)))
    (warning,) = caught
    assert "the tracker 'wandb' failed (OSError: disk full)" in str(warning.message)
    assert [step for step, _ in recorder["tensorboard"].values] == [1, 2, 3]
    assert [step for step, _ in recorder["wandb"].values] == [1]
    assert recorder["tensorboard"].finished == 1 and recorder["wandb"].finished == 0


def test_failing_at_the_end_is_a_warning(recorder: dict[str, Recorder], tmp_path: Path) -> None:
    recorder["tensorboard"].fails_at_end = True
    with (
        pytest.warns(UserWarning, match="OSError: gone"),
        step_logger(TrackingConfig(("tensorboard",)), tmp_path, "weak/0", {}),
    ):
        pass


def test_the_environment_is_the_users(
    recorder: dict[str, Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "false")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with step_logger(TrackingConfig(("wandb",)), tmp_path, "weak/0", {}):
        assert os.environ["WANDB_MODE"] == "offline" and os.environ["WANDB_SILENT"] == "false"
    assert "WANDB_MODE" not in os.environ
    monkeypatch.setenv("WANDB_MODE", "online")
    with step_logger(TrackingConfig(("wandb",)), tmp_path, "weak/0", {}):
        assert os.environ["WANDB_MODE"] == "online"


def test_no_tracker_is_no_callback(tmp_path: Path) -> None:
    with step_logger(TrackingConfig(), tmp_path / "none", "weak/0", {}) as on_step:
        assert on_step is None
    assert not (tmp_path / "none").exists()


def test_a_tracker_that_cannot_start_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file")
    cfg = TrackingConfig(("tensorboard",))
    with (
        pytest.raises(W2SError, match=r"'tensorboard' could not start .*leave it out"),
        step_logger(cfg, tmp_path, "weak/0", {}),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trackers": ["tensorbord"]}, "did you mean 'tensorboard'?"),
        ({"trackers": ["wandb", "wandb"]}, "'wandb' is given twice"),
        ({"project": " "}, "project is empty"),
        ({"folder": ""}, "folder is empty"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(W2SError) as caught:
        config(tmp_path, tracking=settings)
    assert words in str(caught.value) and str(caught.value).startswith("tracking")


def test_a_missing_package_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "wandb" else usual(name)
    )
    cfg = config(tmp_path, tracking={"trackers": ["wandb"]})
    with pytest.raises(W2SError, match="needs wandb: pip install wandb"):
        validate(cfg)
    check_trackers(TrackingConfig())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [name for name in TRACKERS if name != "tensorboard"])
def test_other_trackers_start_log_and_finish(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they are installed; nothing is sent anywhere."""
    if importlib.util.find_spec(kind) is None:  # an import would fix the folder of trackio
        pytest.skip(f"{kind} is not installed")
    for name in ("WANDB_MODE", "TRACKIO_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    with step_logger(TrackingConfig((kind,)), tmp_path, "student/0/xent", {"lr": 0.1}) as on_step:
        on_step(record(1, 1.0))
        on_step(record(2, 2.0))
    assert any(path.is_file() for path in (tmp_path / kind).rglob("*"))
