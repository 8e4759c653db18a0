"""Content-addressed artifacts on disk: every finished stage is one folder that never changes.

A stage is a pure function of a config slice, the digests of its inputs and a version. Their hash
names its folder, ``<root>/<stage>-<hash12>``. A stage is computed in a hidden folder beside it,
whose name is fixed, so a killed run finds its training checkpoints again; one rename publishes the
finished folder. ``stage.json`` lists a SHA-256 for each file and holds one of its own content; both
are checked on every read: a damaged stage is computed again, and no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2s_fast.errors import DataWarning, W2SError
from w2s_fast.files import (
    content_hash,
    explain_write_errors,
    file_hash,
    file_lock,
    read_sealed,
    read_text,
    remove_tree,
    usual_mode,
    write_sealed,
)

FORMAT_VERSION = 3  # part of every key: stages of another format are computed again
META_NAME = "stage.json"
CHECKPOINT_NAME = "checkpoint"  # exists in the hidden folder only; removed before publication


class StoreWarning(UserWarning):
    """A stored stage, or what a killed run left of one, is damaged and is computed again."""


def redirect_store_warnings(listener: Callable[[str], None]) -> None:
    """Send the text of warnings about the store and the data to ``listener``, and no others.

    Call it inside ``warnings.catch_warnings()``, which undoes it.
    """
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, StoreWarning | DataWarning):
            listener(str(message))
        else:
            usual(message, category, *rest, **more)

    warnings.simplefilter("always", StoreWarning)
    warnings.showwarning = show


@dataclass(frozen=True)
class Artifact:
    """One finished stage.

    Attributes:
        path: Folder of the stage.
        digest: SHA-256 over the names and contents of its files; later stages depend on it.
        info: Facts that are not content, such as seconds.
    """

    path: Path
    digest: str
    info: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, to send to another process."""
        return {"path": str(self.path), "digest": self.digest, "info": dict(self.info)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Artifact:
        """Return the artifact that ``to_json`` packed."""
        return Artifact(Path(values["path"]), values["digest"], values["info"])


class Store:
    """Folder of finished stages; it must exist before a stage is built."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()

    def key(self, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
        """Return the full hash that identifies a stage's result."""
        return content_hash(
            {"format": FORMAT_VERSION, "stage": stage, "config": config, "inputs": inputs}
        )

    def path(self, stage: str, key: str) -> Path:
        """Return the folder of the finished stage, whether or not it exists."""
        return self.root / f"{stage}-{key[:12]}"

    def warn_of_other_formats(self) -> None:
        """Warn once of stages that another version of this package stored here."""
        folders = [meta.parent for meta in self.root.glob(f"*/{META_NAME}")]
        if old := [f.name for f in folders if _format_of(f) not in (FORMAT_VERSION, None)]:
            warnings.warn(
                f"{self.root} holds {len(old)} stages of another version of w2s_fast, {old[0]} "
                "among them; they are computed again, and their folders can be deleted",
                StoreWarning,
                stacklevel=2,
            )

    def find(self, stage: str, key: str, *, repair: bool = True) -> Artifact | None:
        """Return the finished stage, verified, or None if it has to be computed.

        A damaged folder is removed with a warning, and left as it is without ``repair``.

        Raises:
            W2SError: The folder belongs to another configuration, holds a file that is no part of
                it, cannot be read, or is damaged and cannot be removed.
        """
        path = self.path(stage, key)
        try:
            if not path.exists() and not path.is_symlink():
                return None
            meta, fault = _read_meta(path)
        except PermissionError as err:
            raise W2SError(
                f"cannot read {err.filename} ({err.strerror}): ask its owner for permission, or "
                "choose another folder with --cache_dir"
            ) from err
        if (meta is None or fault) and not repair:
            return None
        if meta is None or fault:
            text = f"{path} is damaged ({fault}); computing it again"
            warnings.warn(text, StoreWarning, stacklevel=2)
            with explain_write_errors(f"stage {stage!r}", self.root):
                _remove(path)
            return None
        if meta.get("key") != key:
            raise W2SError(
                f"{path} holds the result of another configuration; move it away or choose another "
                "folder with --cache_dir"
            )
        if others := _unlisted(path, meta):
            # It may be read as a part: files of labels and of models are found by their folder.
            raise W2SError(
                f"{others[0]} is no part of the finished stage {stage!r}: move it away, then run "
                "the same command again"
            )
        return Artifact(path, meta["digest"], meta["info"])

    def has_checkpoint(self, stage: str, key: str) -> bool:
        """Return whether an interrupted run left checkpoints of the stage."""
        folder = self._hidden(stage, key) / CHECKPOINT_NAME
        return folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir())

    def _hidden(self, stage: str, key: str) -> Path:
        """Return the folder in which the stage is computed."""
        return self.root / f".{stage}-{key[:12]}"

    @contextlib.contextmanager
    def building(
        self,
        stage: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
    ) -> Iterator[StageBuild]:
        """Yield a folder to fill; publish it if the block ends without an error.

        The folder of a killed process is reused: ``checkpoint/`` is kept, everything else removed,
        unless the stage was complete: then it is published.
        If another process builds the same stage, wait for it; a warning names it.

        Args:
            stage: Name of the stage.
            config: Settings that the stage depends on.
            inputs: Digests of what it reads.

        Raises:
            W2SError: The disk is full or the folder may not be written.
        """
        key = self.key(stage, config, inputs)
        with explain_write_errors(f"stage {stage!r}", self.root):
            # Not the root: if it was moved away, nothing may stand in its way back.
            (self.root / ".locks").mkdir(exist_ok=True)
            lock = self.root / ".locks" / f"{stage}-{key[:12]}"
            with file_lock(lock, waiting=_tell_once(stage)):
                done = self.find(stage, key)
                if done is not None:
                    yield StageBuild(self.root, done)
                    return
                temp = self._hidden(stage, key)
                if _is_complete(temp, key):
                    yield StageBuild(self.root, _publish(temp, self.path(stage, key)))
                    return
                _clear(temp)
                build = StageBuild(temp, None)
                start = time.monotonic()
                yield build
                meta = {"stage": stage, "key": key, "config": config, "inputs": inputs}
                info = {**build.info, "seconds": round(time.monotonic() - start, 3)}
                _complete(temp, meta, info)
                build.artifact = _publish(temp, self.path(stage, key))


@dataclass
class StageBuild:
    """A stage in progress: write into ``path``; ``artifact`` is set once it is published."""

    path: Path
    artifact: Artifact | None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """Folder of training checkpoints; a kill leaves it, and it is not part of the result."""
        return self.path / CHECKPOINT_NAME


def _tell_once(stage: str) -> Callable[[str], None]:
    """Return a function of the owner of a lock that warns of the first call by each owner."""
    told: set[str] = set()

    def waiting(owner: str) -> None:
        if owner not in told:
            told.add(owner)
            text = f"waiting for process {owner}, which computes the same stage {stage!r}"
            warnings.warn(text, StoreWarning, stacklevel=2)

    return waiting


def _remove(path: Path) -> None:
    """Remove what has the name of a stage; of a link, not what it leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        remove_tree(path)


def _clear(temp: Path) -> None:
    if temp.is_symlink() or temp.is_file():
        temp.unlink()  # what a link leads to is not cleared
    temp.mkdir(exist_ok=True)
    for child in temp.iterdir():
        if child.name != CHECKPOINT_NAME:
            _remove(child)
        elif child.is_symlink():
            raise W2SError(
                f"{child} is a symbolic link, and checkpoints are not written through one: put the "
                "folder it leads to in its place, or remove it to start the training again"
            )


def _read_meta(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the stage record and the fault of the folder, "" if there is none."""
    try:
        meta = read_sealed(path / META_NAME)
    except PermissionError:
        raise
    except OSError as err:
        return None, f"{META_NAME}: {err.strerror}"
    except ValueError as err:
        return None, str(err)
    for name, checksum in meta["files"].items():
        if not (path / name).is_file():
            return meta, f"{name} is missing"
        if file_hash(path / name) != checksum:
            return meta, f"{name} differs from its checksum"
    return meta, ""


def _unlisted(path: Path, meta: Mapping[str, Any]) -> list[Path]:
    """Return files that were not there when the stage was complete; hidden ones are never read."""
    known = {path / name for name in (META_NAME, *meta["files"])}
    found = (p for p in sorted(path.rglob("*")) if p not in known and not p.is_dir())
    return [p for p in found if not any(x.startswith(".") for x in p.relative_to(path).parts)]


def _format_of(path: Path) -> int | None:
    """Return the format of a finished stage, or None if its record cannot be read."""
    try:
        return int(json.loads(read_text(path / META_NAME))["format"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # damaged: `find` says so if the stage is needed


def _complete(temp: Path, meta: dict[str, Any], info: dict[str, Any]) -> None:
    """Write the record of a stage whose files are all there."""
    every = (p.relative_to(temp) for p in temp.rglob("*") if p.is_file())
    names = sorted(p.as_posix() for p in every if p.parts[0] != CHECKPOINT_NAME)
    files = {name: file_hash(temp / name) for name in names}
    for name in names:  # contents must reach the disk before the rename publishes them
        (temp / name).chmod(usual_mode())  # some libraries write files that nobody else may read
        with (temp / name).open("rb") as f:
            os.fsync(f.fileno())
    digest = content_hash(files)
    record = {**meta, "format": FORMAT_VERSION, "digest": digest, "files": files, "info": info}
    write_sealed(temp / META_NAME, record)


def _is_complete(temp: Path, key: str) -> bool:
    """Return whether a killed process left a stage that only had to be published."""
    if not (temp / META_NAME).is_file():
        return False
    meta, fault = _read_meta(temp)
    return meta is not None and not fault and meta.get("key") == key


def _publish(temp: Path, final: Path) -> Artifact:
    """Give a complete stage its name; checkpoints are no part of it."""
    if os.path.lexists(temp / CHECKPOINT_NAME):  # what stayed would be published
        _remove(temp / CHECKPOINT_NAME)
    os.replace(temp, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    record = read_sealed(final / META_NAME)
    return Artifact(final, record["digest"], record["info"])
