"""Which model every file of a folder belongs to: by roles.yaml, else by the names of the files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from w2s_fast.errors import W2SError, is_unicode, nearest
from w2s_fast.files import read_text
from w2s_fast.tasks._files import SUFFIXES, file_format
from w2s_fast.yaml_keys import repeated_key

MANIFEST = "roles.yaml"
ROLES = ("weak", "student", "ceiling")
_NAMES = "weak.csv, student-NAME.csv, ceiling.csv, or with .seedN as in student-NAME.seed0.csv"
_PATTERN = re.compile(r"(weak|student|ceiling)(?:-(.+?))?(?:\.seed(\d+))?")


@dataclass(frozen=True)
class ModelFile:
    """The file of one model's predictions of the test items.

    Attributes:
        file: Path of the file inside its folder; it may lie in a folder below.
        role: "weak", "student" or "ceiling".
        name: Name of the student; of a ceiling: the student that it belongs to, empty for the
            ceiling of all.
        seed: Seed of the run; None: the model is the same for every seed.
        base: Pretrained weights that a student started from; empty if all have the same.
    """

    file: str
    role: str
    name: str = ""
    seed: int | None = None
    base: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise W2SError(
                f"{self.file}: role={self.role!r}; expected one of {', '.join(ROLES)}"
                f"{nearest(str(self.role), ROLES)}"
            )
        if self.role == "student" and not self.name:
            raise W2SError(f"{self.file}: a student needs a name, such as the name of its loss")
        if self.role == "weak" and self.name:
            raise W2SError(f"{self.file}: the weak model takes no name; found {self.name!r}")
        whole = self.seed is None or (type(self.seed) is int and 0 <= self.seed < 2**31)
        if not whole:
            raise W2SError(
                f"{self.file}: seed={self.seed!r}; expected a whole number from 0 to 2**31 - 1"
            )
        for key in ("file", "name", "base"):
            if not isinstance(getattr(self, key), str):
                raise W2SError(f"{self.file}: {key}={getattr(self, key)!r}; expected text")
            _check_text(getattr(self, key), f"{self.file!r}: {key}")

    @property
    def title(self) -> str:
        """Role, name and seed, such as "student xent, seed 0"."""
        who = f"{self.role} {self.name}" if self.name else self.role
        return who if self.seed is None else f"{who}, seed {self.seed}"


@dataclass(frozen=True)
class Manifest:
    """The files of a folder.

    Attributes:
        models: One entry per file.
        task: Name of the task, for titles.
        baseline: Student that the others are compared with; empty: ``xent`` or ``naive``, else the
            first.
    """

    models: tuple[ModelFile, ...]
    task: str
    baseline: str = ""


def file_inside(folder: Path, file: str) -> Path:
    """Return the path of a file of a folder.

    Raises:
        W2SError: It leads out of the folder, by its name or as a symbolic link. A folder that
            someone sent must not show other files of whoever reports on it.
    """
    path = folder / file
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except RuntimeError as err:  # links in a circle
        raise W2SError(f"{path} is a link to itself; expected a file") from err
    if not inside:
        raise W2SError(
            f"{path} leads out of {folder}; expected a file inside it, so copy the file there"
        )
    return path


def _check_text(text: str, where: str) -> None:
    """Check that tables, pages and file systems can hold a text."""
    if "\0" in text:
        raise W2SError(f"{where} is {text!r}; expected text without a null character")
    if not is_unicode(text):
        raise W2SError(
            f"{where} is {text!r}, which has half of a surrogate pair or is no UTF-8; rename it"
        )


def read_manifest(folder: Path) -> Manifest:
    """Return the models of a folder.

    Raises:
        W2SError: The folder or its roles.yaml cannot be read, or a file has no role.
    """
    if not folder.is_dir():
        raise W2SError(f"--from {folder} is no folder; expected one with {_NAMES}")
    _check_text(str(folder.resolve()), "--from")
    path = file_inside(folder, MANIFEST)
    if path.is_file():
        manifest = _parse_manifest(path)
    else:
        files = sorted(p.name for p in folder.iterdir() if p.is_file() and _is_table(p))
        manifest = Manifest(tuple(map(_by_name, files)), folder.resolve().name)
    _check_complete(manifest, folder)
    return manifest


def _is_table(path: Path) -> bool:
    return file_format(path) in SUFFIXES and not path.name.startswith(".")


def _by_name(file: str) -> ModelFile:
    stem = file[: file.lower().rindex(file_format(Path(file)))]
    match = _PATTERN.fullmatch(stem)
    if match is None:
        raise W2SError(
            f"{file}: its name does not say which model it belongs to; expected {_NAMES}, or a "
            f"{MANIFEST} that lists every file"
        )
    role, name, seed = match.groups()
    return ModelFile(file, role, name or "", None if seed is None else int(seed))


def _parse_manifest(path: Path) -> Manifest:
    try:
        text = read_text(path)
        values = yaml.safe_load(text)
        repeated = repeated_key(yaml.compose(text, yaml.SafeLoader))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as err:
        raise W2SError(f"{path} is not YAML: {' '.join(str(err).split())}") from err
    if repeated:
        raise W2SError(f"{path}: {repeated}; keep one of them")
    if not isinstance(values, Mapping) or not isinstance(values.get("models"), list):
        raise W2SError(
            f"{path}: expected `models:` with a list of entries such as "
            "{file: a.csv, role: student, name: xent, seed: 0}"
        )
    if unknown := [k for k in values if k not in ("models", "task", "baseline")]:
        known = ("models", "task", "baseline")
        raise W2SError(
            f"{path}: unknown key {unknown[0]!r}; expected {', '.join(known)}"
            f"{nearest(str(unknown[0]), known)}"
        )
    try:
        models = tuple(_parse_entry(i, entry) for i, entry in enumerate(values["models"]))
    except W2SError as err:
        raise W2SError(f"{path}: {err}") from err
    default = path.parent.resolve().name
    task, baseline = str(values.get("task", default)), str(values.get("baseline", ""))
    _check_text(task, f"{path}: task")
    _check_text(baseline, f"{path}: baseline")
    return Manifest(models, task, baseline)


def _parse_entry(position: int, entry: Any) -> ModelFile:
    where = f"models[{position}]"
    known = [field.name for field in fields(ModelFile)]
    if not isinstance(entry, Mapping) or not {"file", "role"} <= entry.keys():
        raise W2SError(f"{where} is {entry!r}; expected {', '.join(known[:2])} and more")
    if unknown := [str(key) for key in entry if key not in known]:
        raise W2SError(
            f"{where}: unknown key {unknown[0]!r}; expected {', '.join(known)}"
            f"{nearest(unknown[0], known)}"
        )
    return ModelFile(**entry)


def _check_complete(manifest: Manifest, folder: Path) -> None:
    """Check that every role is there, and that no two files are the same model."""
    roles = {model.role for model in manifest.models}
    if missing := [role for role in ROLES if role not in roles]:
        raise W2SError(
            f"{folder} has no file of a {missing[0]} model; expected {_NAMES} "
            "(PGR needs weak model, student and ceiling)"
        )
    seen: dict[tuple[str, str, int | None], str] = {}
    for model in manifest.models:
        key = model.role, model.name, model.seed
        if key in seen:
            raise W2SError(
                f"{seen[key]} and {model.file} are both {model.title}; give each a seed or a name "
                "of its own"
            )
        seen[key] = model.file
    names = student_names(manifest)
    for name in filter(None, [manifest.baseline, *_ceiling_names(manifest)]):
        if name not in names:
            raise W2SError(
                f"{folder}: there is no student {name!r}; the students are {', '.join(names)}"
                f"{nearest(name, names)}"
            )


def student_names(manifest: Manifest) -> list[str]:
    """Return the names of the students, in order."""
    return list(dict.fromkeys(m.name for m in manifest.models if m.role == "student"))


def _ceiling_names(manifest: Manifest) -> Sequence[str]:
    return [m.name for m in manifest.models if m.role == "ceiling"]


def find_model(manifest: Manifest, role: str, name: str, seed: int) -> ModelFile | None:
    """Return the model of a role at a seed, or the one that is the same for every seed."""
    own = {m.seed: m for m in manifest.models if (m.role, m.name) == (role, name)}
    return own.get(seed, own.get(None))


def seeds_by_base(manifest: Manifest) -> dict[str, list[int]]:
    """Return the seeds of each base, by its name; seed 0 if no file has a seed.

    Raises:
        W2SError: Bases share a seed or have different numbers of them, or a student lacks one.
    """
    students = [m for m in manifest.models if m.role == "student"]
    every = {m.seed for m in manifest.models if m.seed is not None} or {0}
    base_of: dict[int, str] = {}
    for model in students:
        for seed in sorted(every) if model.seed is None else [model.seed]:
            if base_of.setdefault(seed, model.base) != model.base:
                raise W2SError(
                    f"{model.file}: seed {seed} belongs to the bases {base_of[seed]!r} and "
                    f"{model.base!r}; give every base seeds of its own, with their own weak models"
                )
    bases: dict[str, list[int]] = {}
    for seed in sorted(every):
        bases.setdefault(base_of.get(seed, ""), []).append(seed)
        _check_seed(manifest, seed)
    if len({len(seeds) for seeds in bases.values()}) > 1:
        counts = ", ".join(f"{name or 'no base'}: {len(seeds)}" for name, seeds in bases.items())
        raise W2SError(f"the bases have different numbers of seeds ({counts}); expected the same")
    return bases


def _check_seed(manifest: Manifest, seed: int) -> None:
    def require(role: str, name: str) -> None:
        if find_model(manifest, role, name, seed) is None:
            other = next(m for m in manifest.models if m.seed == seed)
            raise W2SError(
                f"there is no {role} {name}".rstrip() + f" for seed {seed}, which {other.file} has;"
                " add its file, or remove those of this seed"
            )

    require("weak", "")
    for name in student_names(manifest):
        require("student", name)
        if find_model(manifest, "ceiling", name, seed) is None:
            require("ceiling", "")
