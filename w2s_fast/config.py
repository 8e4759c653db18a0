"""The configuration of a run: one tree of frozen dataclasses.

The dataclasses of the parts (task, models, training) are the schema: a field added there can be
set here, is checked by its type, and appears in ``--print-config``. Importing this module needs
neither torch nor transformers; ``validate`` checks what needs them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from w2s_fast.debate import CriticConfig, WriterConfig
from w2s_fast.errors import W2SError, is_unicode, nearest
from w2s_fast.metrics import CALIBRATORS
from w2s_fast.models import BUILT_IN, ModelConfig
from w2s_fast.models.checkpoint_source import is_checkpoint, is_gguf
from w2s_fast.paths import PathText, expand_paths
from w2s_fast.report.page_config import PageConfig
from w2s_fast.setting_names import setting_hint
from w2s_fast.specs import settings, split
from w2s_fast.supervisors import SupervisorsConfig, parse_source
from w2s_fast.tasks import EMBEDDED, TaskConfig
from w2s_fast.tracking import TrackingConfig, check_trackers
from w2s_fast.training import TrainConfig

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda")
DIAGNOSTICS = ("fit", "overlap")
_MAX_TEXT = 100_000  # characters of a setting; the longest are prompts
SEED_STRIDE = 10_000  # from the seeds of one base to those of the next
_PRETRAIN_SEED = "pretrain_seed"  # in a base's spec: task.pretrain.seed


@dataclass(frozen=True)
class RunConfig:
    """One weak-to-strong experiment; the defaults are the embedded task `agreement`.

    Attributes:
        task: The data and the sizes of its splits.
        weak: The weak model.
        student: The strong model; the ceiling is the same model trained on true labels.
        weak_train: Training of the weak model on true labels.
        student_train: Training of student, ceiling and control.
        supervisors: Many weak supervisors in place of the weak model: sources of votes and the
            label model that combines them (docs/supervisors.md).
        losses: Losses of the student, each "name" or "name:key=value,key=value".
        methods: Methods applied to the weak labels, each combined with every loss; "a|b" applies
            a, then b; "method@loss" is combined with that loss only.
        intermediate_models: Models between weak model and student for methods that use them, each
            a source with the settings that differ from the student: "path/to/model" or
            "scratch:hidden=64,layers=2".
        transcript_writer: Writer of the transcripts for debate methods.
        critic_writer: Writer of the critiques for the method `critique`.
        student_bases: Pretrained weights that the student starts from, each a source with the
            settings that differ from ``student``: "path/to/model" or
            "agreement-lm:pretrain_seed=1". Empty: ``student`` alone. From three bases on, intervals
            are over bases.
        seeds: Seeds of data split, initial weights and data order; everything runs once per seed.
            Those of the second base are these + 10000, of the third + 20000, and on.
        rounding_replicates: Further trainings of every student from weights that differ in their
            last bits; their standard deviation stands beside that over seeds.
        control: Also train a student without pretraining, to show the effect of pretraining.
        weak_calibration: How the weak labels are calibrated before any method reads them: "none",
            "temperature" or "platt", fitted to the weak split alone (docs/diagnostics.md).
        calibration_folds: Parts of the weak split. As many further weak models are trained, each
            without one part, which it predicts for the calibration.
        diagnostics: Diagnostics that cost time: "fit" records how every student fits its weak
            labels, "overlap" computes the overlap density of the transfer split.
        page: What the page shows of the test items.
        output_dir: Folder of results.json, items.json, outcomes.parquet, plot and page.
        cache_dir: Folder of the finished stages; default: OUTPUT_DIR/cache. Runs may share one.
        device: "auto" (CUDA if there is one), "cpu" or "cuda".
        workers: Number of parallel trainings; 0: by cores and model. It never changes results.
        threads: Number of threads per training; 0: by cores and model.
        tracking: Trackers that show the trainings of the run, such as TensorBoard.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    weak: ModelConfig = field(
        default_factory=lambda: ModelConfig(source="scratch", hidden=32, layers=1, heads=4)
    )
    student: ModelConfig = field(default_factory=lambda: ModelConfig(source="agreement-lm"))
    weak_train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=8, lr=2e-3, checkpoint_every=100)
    )
    student_train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=3,
            batch_size=64,
            lr=1.5e-4,
            warmup_frac=0.3,
            clip_norm=1.0,
            average_frac=0.5,
            checkpoint_every=100,
        )
    )
    supervisors: SupervisorsConfig = field(default_factory=SupervisorsConfig)
    losses: tuple[str, ...] = ("xent", "logconf")
    methods: tuple[str, ...] = ("naive",)
    intermediate_models: tuple[str, ...] = ()
    transcript_writer: WriterConfig = field(default_factory=WriterConfig)
    critic_writer: CriticConfig = field(default_factory=CriticConfig)
    student_bases: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    rounding_replicates: int = 0
    control: bool = False
    weak_calibration: str = "none"
    calibration_folds: int = 5
    diagnostics: tuple[str, ...] = ()
    page: PageConfig = field(default_factory=PageConfig)
    output_dir: PathText = "out"
    cache_dir: PathText | None = None
    device: str = "auto"
    workers: int = 0
    threads: int = 0
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        for name in ("losses", "methods", "seeds", "student_bases", "diagnostics"):
            values = getattr(self, name)
            if not values and name not in ("student_bases", "diagnostics"):
                raise W2SError(f"{name} is empty: name at least one")
            if repeated := [v for i, v in enumerate(values) if v in values[:i]]:
                raise W2SError(f"{name}: {repeated[0]!r} is given twice; drop one")
        if bad := [s for s in self.seeds if not 0 <= s < 2**31]:
            raise W2SError(f"seeds: {bad[0]} is outside 0 to 2**31 - 1")
        self._check_seeds_of_bases()
        if self.device not in DEVICES:
            hint = nearest(self.device, DEVICES)
            raise W2SError(f"device={self.device!r}: expected auto, cpu or cuda{hint}")
        self._check_diagnostics()
        for name in ("workers", "threads"):
            if getattr(self, name) < 0:
                raise W2SError(f"{name}={getattr(self, name)}: expected 0 (automatic) or more")
        if self.rounding_replicates < 0:
            raise W2SError(f"rounding_replicates={self.rounding_replicates}: expected 0 or more")
        expand_paths(self)

    def _check_diagnostics(self) -> None:
        known = ("none", *CALIBRATORS)
        if self.weak_calibration not in known:
            raise W2SError(
                f"weak_calibration={self.weak_calibration!r}: expected one of {', '.join(known)}"
                f"{nearest(self.weak_calibration, known)}"
            )
        if self.calibration_folds < 2:
            raise W2SError(
                f"calibration_folds={self.calibration_folds}: expected 2 or more, so that every "
                "row is predicted by a model that was not trained on it"
            )
        for name in self.diagnostics:
            if name not in DIAGNOSTICS:
                raise W2SError(
                    f"diagnostics: {name!r} is unknown; expected some of {', '.join(DIAGNOSTICS)}"
                    f"{nearest(name, DIAGNOSTICS)}"
                )

    def _check_seeds_of_bases(self) -> None:
        """Check that no two bases share a seed, and with it data and weak model."""
        every = run_seeds(self)
        if len(set(every)) < len(every) or max(every) >= 2**31:
            raise W2SError(
                f"seeds {list(self.seeds)}: those of {len(self.student_bases)} student_bases are "
                f"{SEED_STRIDE} apart and must differ, and stay below 2**31; use seeds below "
                f"{SEED_STRIDE}"
            )

    @property
    def store_dir(self) -> Path:
        """Folder of the finished stages."""
        return Path(self.output_dir, "cache") if self.cache_dir is None else Path(self.cache_dir)

    @property
    def tracking_dir(self) -> Path:
        """Folder of the files of trackers."""
        folder = self.tracking.folder
        return Path(self.output_dir, "tracking") if folder is None else Path(folder)


def validate(cfg: RunConfig) -> None:
    """Check specs of losses, methods, task and models, the device, and the chosen backend.

    Raises:
        W2SError: A value is unknown or does not fit.
    """
    for name in field_types():
        check_text(name, operator.attrgetter(name)(cfg))
    from w2s_fast.losses import canonical_spec
    from w2s_fast.methods import make_steps
    from w2s_fast.ops.dispatch import check_environment
    from w2s_fast.tasks import get_task

    check_environment()
    check_trackers(cfg.tracking)
    get_task(cfg.task.name)
    specs: dict[str, str] = {}
    for spec in cfg.losses:
        same = specs.setdefault(canonical_spec(spec), spec)
        if same != spec:
            raise W2SError(f"losses: {same!r} and {spec!r} are the same loss; drop one")
    for spec in cfg.methods:
        make_steps(spec.partition("@")[0])
    for spec in cfg.supervisors.sources:
        parse_source(spec)
    if cfg.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise W2SError("device='cuda', but torch finds no CUDA device; use --device cpu")
    for seed in {seeds[0] for seeds in seeds_of_bases(cfg)}:
        _check_sources(at_seed(cfg, seed))


def _check_sources(cfg: RunConfig) -> None:
    """Check that every model is built in or a checkpoint, and knows the language of the task."""
    sources = {role: model_of(cfg, role).source for role in roles(cfg)}
    for role, source in sources.items():
        if source in EMBEDDED and cfg.task.name != EMBEDDED[source].task:
            raise W2SError(
                f"{role}.source={source!r} knows only the language of task "
                f"{EMBEDDED[source].task!r}, not of {cfg.task.name!r}; give {role}.source and "
                f"{role}_train.lr, as in --{role}.source bow --{role}_train.lr 0.1, or the folder "
                "of a checkpoint"
            )
        if source not in BUILT_IN and not is_checkpoint(Path(source)):
            what = "file" if is_gguf(Path(source)) else "folder"
            raise W2SError(
                f"{role}.source={source!r} is not a {what}; expected the folder of a transformers "
                f"checkpoint, a .gguf file or one of {', '.join(BUILT_IN)}"
                f"{nearest(source, BUILT_IN)}"
            )


def roles(cfg: RunConfig) -> tuple[str, ...]:
    """Return the roles of models: "weak", "student", and "intermediate/0" and on."""
    return ("weak", "student", *(f"intermediate/{i}" for i in range(len(cfg.intermediate_models))))


def model_of(cfg: RunConfig, role: str) -> ModelConfig:
    """Return the model of a role, see ``roles``.

    Raises:
        W2SError: An entry of ``intermediate_models`` has an unknown setting.
    """
    name, _, position = role.partition("/")
    if name != "intermediate":
        return cfg.weak if name == "weak" else cfg.student
    spec = cfg.intermediate_models[int(position)]
    source, rest = split(spec)
    changes = {"source": source, **settings(ModelConfig, rest, spec, "model")}
    with naming_block(f"intermediate_models: {spec!r}", ": "):
        return dataclasses.replace(cfg.student, **changes)


def run_seeds(cfg: RunConfig) -> tuple[int, ...]:
    """Return the seed of every run: those of the first base, then those of the next."""
    return tuple(s for seeds in seeds_of_bases(cfg) for s in seeds)


def seeds_of_bases(cfg: RunConfig) -> list[list[int]]:
    """Return the seeds of each base; a run without ``student_bases`` has one base."""
    return [[s + SEED_STRIDE * i for s in cfg.seeds] for i in range(len(cfg.student_bases) or 1)]


def base_names(cfg: RunConfig) -> tuple[str, ...]:
    """Return the source of each base."""
    return cfg.student_bases or (cfg.student.source,)


def at_seed(cfg: RunConfig, seed: int | None) -> RunConfig:
    """Return the configuration of one run: its student is the base that the seed belongs to.

    Raises:
        W2SError: An entry of ``student_bases`` has an unknown setting.
    """
    if seed is None or not cfg.student_bases:
        return cfg
    index = next(i for i, seeds in enumerate(seeds_of_bases(cfg)) if seed in seeds)
    return _with_base(cfg, cfg.student_bases[index])


def _with_base(cfg: RunConfig, spec: str) -> RunConfig:
    source, rest = split(spec)
    parts = rest.split(",") if rest else []
    pretraining = [p for p in parts if p.partition("=")[0].strip() == _PRETRAIN_SEED]
    own = ",".join(p for p in parts if p not in pretraining)
    task = cfg.task
    with naming_block(f"student_bases: {spec!r}", ": "):
        changes = {"source": source, **settings(ModelConfig, own, spec, "model")}
        student = dataclasses.replace(cfg.student, **changes)
        if pretraining:
            embedded = EMBEDDED.get(source, EMBEDDED["agreement-lm"])
            seed = ",".join(p.replace(_PRETRAIN_SEED, "seed") for p in pretraining)
            changed = settings(type(embedded.config(task)), seed, spec, "pretrain")
            task = embedded.with_settings(task, **changed)
    return dataclasses.replace(cfg, task=task, student=student, student_bases=())


def train_of(cfg: RunConfig, role: str) -> TrainConfig:
    """Return the training configuration of a role."""
    return cfg.weak_train if role == "weak" else cfg.student_train


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration in nested plain values, the inverse of ``to_dict``."""
    return fill(RunConfig, values)


def to_dict(cfg: Any) -> dict[str, Any]:
    """Return a configuration as nested plain values: dicts, lists, numbers, strings."""
    return {
        f.name: to_dict(value)
        if dataclasses.is_dataclass(value := getattr(cfg, f.name))
        else list(value)
        if isinstance(value, tuple)
        else value
        for f in dataclasses.fields(cfg)
    }


def to_yaml(cfg: Any, *, skip_default: bool = False) -> str:
    """Return the configuration as YAML, which ``cli.parse.load_config`` reads.

    Args:
        cfg: The configuration, all of whose fields have defaults.
        skip_default: Leave out the settings that have their default.
    """
    import yaml

    values = to_dict(cfg)
    if skip_default:
        values = _differences(values, to_dict(type(cfg)()))
    return yaml.safe_dump(values, sort_keys=False)


def _differences(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    changed = {k: v for k, v in values.items() if v != defaults[k]}
    return {
        k: _differences(v, defaults[k]) if isinstance(v, Mapping) else v for k, v in changed.items()
    }


@functools.cache  # evaluating them is most of the time in which a configuration is read
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)  # has the ClassVars, too
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def field_types(cls: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Return the type of every field by its dotted name, e.g. ``student_train.lr: float``."""
    types: dict[str, Any] = {}
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            types |= field_types(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            types[prefix + name] = hint
    return types


def fill(cls: type[T], values: Mapping[str, Any], prefix: str = "", root: type = RunConfig) -> T:
    """Return a configuration dataclass from nested plain values.

    Args:
        cls: The dataclass.
        values: Values by field; nested dataclasses are mappings.
        prefix: Prefix of names in messages.
        root: The outermost dataclass, for hints in messages.

    Raises:
        W2SError: A name is unknown, or a value is not a mapping where one is expected.
    """
    hints = _hints(typing.cast(type, cls))
    kwargs: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise unknown_setting(prefix + name, root)
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise W2SError(f"{prefix}{name}={value!r}: expected a block of settings")
            value = fill(typing.cast(type, hints[name]), value, f"{prefix}{name}.", root)
        check_text(prefix + name, value)
        kwargs[name] = tuple(value) if isinstance(value, list) else value
    with naming_block(prefix[:-1]):
        return cls(**kwargs)


@contextlib.contextmanager
def naming_block(block: str, separator: str = ".") -> Iterator[None]:
    """Put the block into messages about its settings: "weak_train.lr is -1.0", not "lr is -1.0".

    Args:
        block: The block, such as "weak_train"; "": change nothing.
        separator: Text between block and setting.
    """
    try:
        yield
    except W2SError as err:
        message = str(err)
        if not block or message.startswith(f"{block}."):
            raise
        names_setting = re.match(r"[a-z_0-9]+( is |=)", message)
        raise W2SError(f"{block}{separator if names_setting else ': '}{message}") from err


def check_text(name: str, value: Any) -> None:
    """Check that the texts in a setting can be written to files.

    Raises:
        W2SError: One has a NUL or half of a surrogate pair, or is too long.
    """
    for text in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(text, str):
            continue
        if len(text) > _MAX_TEXT:
            raise W2SError(
                f"{name} has {len(text)} characters; expected at most {_MAX_TEXT}, so check its "
                "value"
            )
        if "\0" in text or not is_unicode(text):
            raise W2SError(
                f"{name}={text!r} has a NUL or bytes that are no UTF-8; expected text, so remove "
                "them, or rename the file"
            )


def unknown_setting(name: str, root: type = RunConfig) -> W2SError:
    """Return the error for a dotted name that is no field, with the likeliest name as a hint."""
    return W2SError(f"unknown setting {name!r}{setting_hint(name, field_types(root))}")
