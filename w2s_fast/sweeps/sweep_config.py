"""Configuration of a sweep: what varies; everything else is one ``RunConfig``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError, nearest
from w2s_fast.paths import PathText, expand_paths

PAIRS = ("all", "smaller")
LISTS = ("tasks", "weak_models", "student_models")
# settings of the run that the sweep sets -> the setting of the sweep that decides them
_SET_BY_SWEEP = {
    "output_dir": "output_dir",
    "cache_dir": "cache_dir",
    "device": "devices",
    "workers": "devices",
    "student_bases": "student_models",
}


@dataclass(frozen=True)
class SweepConfig:
    """Configure a sweep; the defaults are one run on the embedded task.

    Attributes:
        run: Settings shared by all runs. Its losses, methods and seeds apply to each run; its task,
            models and trainings are the base that the lists below modify.
        tasks: Tasks, each a name with the settings that differ from ``run.task``: "sciq" or
            "local:path=reviews.csv,label=stars".
        weak_models: Supervisors, each a source with the settings that differ from ``run.weak`` and
            ``run.weak_train``: "path/to/model" or "scratch:hidden=64,lr=1e-3".
        student_models: Students, in the same form, for ``run.student`` and ``run.student_train``.
        pairs: "all" pairs every supervisor with every student; "smaller" reads student_models in
            order of size and omits pairs whose supervisor is larger than the student.
        devices: Devices that compute stages in parallel, one process each: "cpu" or "cuda:0"; a
            repeated name adds a process. Empty: every CUDA device, else as many as cores allow.
        output_dir: Folder of sweep.json, table and plot; each run has its own folder in
            OUTPUT_DIR/cells.
        cache_dir: Folder of the finished stages, shared by all runs; default OUTPUT_DIR/cache.
    """

    run: RunConfig = field(default_factory=RunConfig)
    tasks: tuple[str, ...] = ("agreement",)
    weak_models: tuple[str, ...] = ("scratch",)
    student_models: tuple[str, ...] = ("agreement-lm",)
    pairs: str = "all"
    devices: tuple[str, ...] = ()
    output_dir: PathText = "out/sweep"
    cache_dir: PathText | None = None

    def __post_init__(self) -> None:
        for name in LISTS:
            values = getattr(self, name)
            if not values:
                raise W2SError(f"{name} is empty: name at least one")
            if repeated := [v for i, v in enumerate(values) if v in values[:i]]:
                raise W2SError(f"{name}: {repeated[0]!r} is given twice; drop one")
        if self.pairs not in PAIRS:
            hint = nearest(self.pairs, PAIRS)
            raise W2SError(f"pairs={self.pairs!r}: expected one of {', '.join(PAIRS)}{hint}")
        expand_paths(self)
        self._check_order()
        self._check_devices()
        default = RunConfig()
        for name, own in _SET_BY_SWEEP.items():
            if getattr(self.run, name) != getattr(default, name):
                raise W2SError(f"run.{name} is decided by the sweep; set {own} instead")

    def _check_order(self) -> None:
        unordered = [m for m in self.weak_models if m not in self.student_models]
        if self.pairs == "smaller" and unordered:
            raise W2SError(
                f"pairs='smaller': {unordered[0]!r} of weak_models is not in student_models, whose "
                "order says what is smaller; add it there, or use pairs='all'"
            )

    def _check_devices(self) -> None:
        for name in self.devices:
            if not re.fullmatch(r"cpu|cuda:\d+", name):
                hint = nearest(name, ("cpu", "cuda:0"))
                raise W2SError(f"devices: {name!r}; expected cpu or cuda:NUMBER{hint}")
        if len({name.partition(":")[0] for name in self.devices}) > 1:
            raise W2SError(
                f"devices: {' '.join(self.devices)} mixes cpu and cuda, whose results differ in "
                "the last digits; name devices of one kind"
            )
