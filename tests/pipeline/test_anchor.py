"""The penalty on drift in a run: as a method, and as a setting of every training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.toy_run import config

from w2s_fast.config import RunConfig
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import MODEL


def weights(cfg: RunConfig, *names: str) -> list[bytes]:
    stages: Any = run(cfg)["provenance"]["stages"]
    return [(cfg.store_dir / stages[name]["folder"] / MODEL).read_bytes() for name in names]


def test_the_method_is_the_setting_without_the_ceiling(tmp_path: Path) -> None:
    student = {"source": "scratch", "hidden": 16, "heads": 2}
    recipe = {"epochs": 2, "lr": 0.01, "batch_size": 16}

    def cfg(name: str, methods: list[str], **more: float) -> RunConfig:
        return config(
            tmp_path / name, methods=methods, student=student, student_train={**recipe, **more},
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip

    spec = "anchor:strength=0.5"
    naive, anchored, ceiling = weights(
        cfg("method", ["naive", spec]), "student/0/xent", f"student/0/{spec}+xent", "ceiling/0"
    )
    setting, its_ceiling = weights(cfg("setting", ["naive"], anchor=0.5), "student/0/xent",
                                   "ceiling/0")  # fmt: skip
    assert anchored == setting != naive
    assert its_ceiling != ceiling
    assert weights(cfg("plain", ["naive"]), "ceiling/0") == [ceiling]
