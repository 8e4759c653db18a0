"""The configuration of a run: one tree of frozen dataclasses.

The dataclasses of the parts (task, models, training) are the schema: a field added there can be
set here, is checked by its type, and appears in ``--print-config``. Importing this module needs
neither torch nor transformers; ``validate`` checks what needs them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from w2s_fast.debate import WriterConfig
from w2s_fast.errors import W2SError, nearest
from w2s_fast.models import BUILT_IN, ModelConfig
from w2s_fast.specs import settings, split
from w2s_fast.tasks import TaskConfig
from w2s_fast.training import TrainConfig

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class RunConfig:
    """One weak-to-strong experiment; the defaults are the embedded task `agreement`.

    Attributes:
        task: The data and the sizes of its splits.
        weak: The weak model.
        student: The strong model; the ceiling is the same model trained on true labels.
        weak_train: Training of the weak model on true labels.
        student_train: Training of student, ceiling and control.
        losses: Losses of the student, each "name" or "name:key=value,key=value".
        methods: Methods applied to the weak labels, each combined with every loss; "a|b" applies
            a, then b; "method@loss" is combined with that loss only.
        intermediate_models: Models between weak model and student for methods that use them, each
            a source with the settings that differ from the student: "path/to/model" or
            "scratch:hidden=64,layers=2".
        transcript_writer: Writer of the transcripts for debate methods.
        seeds: Seeds of data split, initial weights and data order; everything runs once per seed.
        control: Also train a student without pretraining, to show the effect of pretraining.
        output_dir: Folder of results.json, plot and page.
        cache_dir: Folder of the finished stages; default: OUTPUT_DIR/cache. Runs may share one.
        device: "auto" (CUDA if there is one), "cpu" or "cuda".
        workers: Number of parallel trainings; 0: by cores and model. It never changes results.
        threads: Number of threads per training; 0: by cores and model.
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
        default_factory=lambda: TrainConfig(epochs=3, lr=1e-3, checkpoint_every=100)
    )
    losses: tuple[str, ...] = ("xent", "logconf")
    methods: tuple[str, ...] = ("naive",)
    intermediate_models: tuple[str, ...] = ()
    transcript_writer: WriterConfig = field(default_factory=WriterConfig)
    seeds: tuple[int, ...] = (0, 1, 2)
    control: bool = False
    output_dir: str = "out"
    cache_dir: str | None = None
    device: str = "auto"
    workers: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        for name in ("losses", "methods", "seeds"):
            values = getattr(self, name)
            if not values:
                raise W2SError(f"{name} is empty: name at least one")
            if repeated := [v for i, v in enumerate(values) if v in values[:i]]:
                raise W2SError(f"{name}: {repeated[0]!r} is given twice; drop one")
        if bad := [s for s in self.seeds if not 0 <= s < 2**31]:
            raise W2SError(f"seeds: {bad[0]} is outside 0 to 2**31 - 1")
        if self.device not in DEVICES:
            hint = nearest(self.device, DEVICES)
            raise W2SError(f"device={self.device!r}: expected auto, cpu or cuda{hint}")
        for name in ("workers", "threads"):
            if getattr(self, name) < 0:
                raise W2SError(f"{name}={getattr(self, name)}: expected 0 (automatic) or more")
        if not self.output_dir:
            raise W2SError("output_dir is empty: name a folder for the results")

    @property
    def store_dir(self) -> Path:
        """Folder of the finished stages."""
        return Path(self.output_dir, "cache") if self.cache_dir is None else Path(self.cache_dir)


def validate(cfg: RunConfig) -> None:
    """Check specs of losses, methods, task and models, and the device, before anything is computed.

    Raises:
        W2SError: A value is unknown or does not fit.
    """
    from w2s_fast.losses import canonical_spec
    from w2s_fast.methods import make_steps
    from w2s_fast.tasks import get_task

    get_task(cfg.task.name)
    specs: dict[str, str] = {}
    for spec in cfg.losses:
        same = specs.setdefault(canonical_spec(spec), spec)
        if same != spec:
            raise W2SError(f"losses: {same!r} and {spec!r} are the same loss; drop one")
    for spec in cfg.methods:
        make_steps(spec.partition("@")[0])
    if cfg.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise W2SError("device='cuda', but torch finds no CUDA device; use --device cpu")
    _check_sources(cfg)


def _check_sources(cfg: RunConfig) -> None:
    """Check that every model is built in or a folder, and that there is a tokenizer."""
    embedded = cfg.task.name == "agreement"
    sources = {role: model_of(cfg, role).source for role in roles(cfg)}
    for role, source in sources.items():
        if source == "agreement-lm" and not embedded:
            raise W2SError(
                f"{role}.source='agreement-lm' knows only the language of task 'agreement', not "
                f"of {cfg.task.name!r}; give the folder of a checkpoint, 'scratch' or 'bow'"
            )
        if source not in BUILT_IN and not Path(source).is_dir():
            raise W2SError(
                f"{role}.source={source!r} is not a folder; expected the folder of a transformers "
                f"checkpoint or one of {', '.join(BUILT_IN)}{nearest(source, BUILT_IN)}"
            )
    if not embedded and all(source in BUILT_IN for source in sources.values()):
        raise W2SError(
            f"task {cfg.task.name!r} needs a tokenizer: give student.source or weak.source as the "
            "folder of a transformers checkpoint"
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
    return dataclasses.replace(cfg.student, **changes)


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


def to_yaml(cfg: Any) -> str:
    """Return the configuration as YAML, which ``cli.parse.load_config`` reads."""
    import yaml

    return yaml.safe_dump(to_dict(cfg), sort_keys=False)


def field_types(cls: type = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Return the type of every field by its dotted name, e.g. ``student_train.lr: float``."""
    types: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(cls).items():
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
    hints = {f.name: typing.get_type_hints(cls)[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    kwargs: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise unknown_setting(prefix + name, root)
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise W2SError(f"{prefix}{name}={value!r}: expected a block of settings")
            value = fill(typing.cast(type, hints[name]), value, f"{prefix}{name}.", root)
        kwargs[name] = tuple(value) if isinstance(value, list) else value
    return cls(**kwargs)


def unknown_setting(name: str, root: type = RunConfig) -> W2SError:
    """Return the error for a dotted name that is no field, with the likeliest name as a hint."""
    known = field_types(root)
    blocks = {k.rsplit(".", i)[0] for k in known for i in range(1, k.count(".") + 1)}
    leaf = name.rsplit(".", 1)[-1]
    same_leaf = [k for k in known if k.rsplit(".", 1)[-1] == leaf]
    hint = nearest(name, known | dict.fromkeys(blocks)) if name not in blocks else ""
    if same_leaf and "now called" not in hint:  # the wrong block is likelier than a typo
        names = " and ".join(repr(k) for k in same_leaf)
        hint = f"; there is {names}" if same_leaf[1:] else f"; did you mean {names}?"
    return W2SError(f"unknown setting {name!r}{hint or '; see --print-config for all of them'}")
