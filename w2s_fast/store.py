"""Content-addressed artifacts on disk: every finished stage is one folder that never changes.

A stage is a pure function of a config slice, the digests of its inputs and a version. Their hash
names its folder, ``<root>/<stage>-<hash12>``. A stage is computed in a hidden folder beside it,
whose name is fixed, so a killed run finds its training checkpoints again; one rename publishes the
finished folder. ``stage.json`` lists a SHA-256 for each file and is checked on every read: a
damaged stage is computed again, and no other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2s_fast.errors import W2SError

FORMAT_VERSION = 2  # part of every key: stages of another format are computed again
META_NAME = "stage.json"
CHECKPOINT_NAME = "checkpoint"  # exists in the hidden folder only; removed before publication
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


class StoreWarning(UserWarning):
    """A stored stage is damaged and is computed again."""


def redirect_store_warnings(listener: Callable[[str], None]) -> None:
    """Send the text of each ``StoreWarning`` to ``listener``; leave other warnings alone.

    Call it inside ``warnings.catch_warnings()``, which undoes it.
    """
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, StoreWarning):
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


def content_hash(value: Any) -> str:
    """Return the SHA-256 (hex) of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tree_hash(root: Path) -> str:
    """Return one digest over names and contents of all files under ``root`` that are not hidden."""
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    visible = [n for n in names if not any(part.startswith(".") for part in n.split("/"))]
    return content_hash({n: file_hash(root / n) for n in visible})


@contextlib.contextmanager
def explain_write_errors(what: str, where: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into a one-line error with the fix.

    Raises:
        W2SError: The disk is full, or the folder may not be written; other errors pass through.
    """
    try:
        yield
    except Exception as err:
        code = getattr(err, "errno", None)
        if _is_full(err):
            raise W2SError(
                f"no space left while writing {what} in {where}: free some space or choose another "
                "folder with --cache_dir, then run the same command; everything stored is kept"
            ) from err
        name = getattr(err, "filename", None) or os.sep
        if code in _FORBIDDEN and Path(os.fsdecode(name)).absolute().is_relative_to(where):
            raise W2SError(
                f"cannot write {what} in {where} ({os.strerror(code)}): choose a folder you may "
                "write with --out or --cache_dir"
            ) from err
        raise


def _is_full(err: BaseException | None) -> bool:
    """Return whether an error, or its cause, is a full disk or quota."""
    if err is None:
        return False
    # safetensors gives the operating system's error number in its message only.
    in_message = any(f"os error {n})" in str(err) for n in _FULL)
    return in_message or getattr(err, "errno", None) in _FULL or _is_full(err.__cause__)


def open_no_link(path: str, flags: int) -> int:
    """Open a file for ``open(..., opener=)``; a link, which may lead anywhere, is a W2SError."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as err:
        if err.errno == errno.ELOOP:
            raise W2SError(f"{path} is a symbolic link; expected a file, remove the link") from None
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: a temporary file beside it, flushed to disk, then renamed."""
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temp, "wb", opener=open_no_link) as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def file_lock(path: Path, taken: str | None = None) -> Iterator[None]:
    """Hold the lock file ``path``; the kernel releases it when the process ends, also by a kill.

    Args:
        path: Lock file; it stays and holds the number of its last owner.
        taken: Error message if another process holds it, with ``{pid}`` filled in. None: wait.

    Raises:
        W2SError: Another process holds the lock, and ``taken`` is given.
    """
    with open(path, "a+", opener=open_no_link) as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            if taken is not None:
                f.seek(0)
                raise W2SError(taken.format(pid=f.read().strip() or "unknown")) from err
            fcntl.flock(f, fcntl.LOCK_EX)
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
        yield


class Store:
    """Folder of finished stages."""

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

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the finished stage, verified, or None if it has to be computed.

        A damaged folder is removed with a warning.

        Raises:
            W2SError: The folder belongs to another configuration, or cannot be read.
        """
        path = self.path(stage, key)
        try:
            if not path.exists():
                return None
            meta, fault = _read_meta(path)
        except PermissionError as err:
            raise W2SError(
                f"cannot read {err.filename} ({err.strerror}): ask its owner for permission, or "
                "choose another folder with --cache_dir"
            ) from err
        if meta is not None and meta.get("key") != key:
            raise W2SError(
                f"{path} holds the result of another configuration; move it away or choose another "
                "folder with --cache_dir"
            )
        if meta is None or fault:
            text = f"{path} is damaged ({fault}); computing it again"
            warnings.warn(text, StoreWarning, stacklevel=2)
            shutil.rmtree(path)
            return None
        return Artifact(path, meta["digest"], meta["info"])

    @contextlib.contextmanager
    def building(
        self, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> Iterator[StageBuild]:
        """Yield a folder to fill; publish it if the block ends without an error.

        The folder of a killed process is reused: ``checkpoint/`` is kept, everything else removed.
        If another process builds the same stage, wait for it.

        Raises:
            W2SError: The disk is full or the folder may not be written.
        """
        key = self.key(stage, config, inputs)
        with explain_write_errors(f"stage {stage!r}", self.root):
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            with file_lock(self.root / ".locks" / f"{stage}-{key[:12]}"):
                done = self.find(stage, key)
                if done is not None:
                    yield StageBuild(self.root, done)
                    return
                temp = self.root / f".{stage}-{key[:12]}"
                _clear(temp)
                build = StageBuild(temp, None)
                start = time.monotonic()
                yield build
                meta = {"stage": stage, "key": key, "config": config, "inputs": inputs}
                info = {**build.info, "seconds": round(time.monotonic() - start, 3)}
                build.artifact = _publish(temp, self.path(stage, key), meta, info)


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


def _clear(temp: Path) -> None:
    if temp.is_symlink():
        temp.unlink()  # what it leads to is not cleared
    temp.mkdir(exist_ok=True)
    for child in temp.iterdir():
        if child.name == CHECKPOINT_NAME:
            continue
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()


def _read_meta(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the stage record and the fault of the folder, "" if there is none."""
    try:
        meta = json.loads((path / META_NAME).read_bytes())
        files, digest = meta["files"], meta["digest"]
        if not {"key", "info"} <= meta.keys():
            raise KeyError("key")
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as err:
        return None, f"{META_NAME}: {type(err).__name__}"
    for name, checksum in files.items():
        if not (path / name).is_file():
            return meta, f"{name} is missing"
        if file_hash(path / name) != checksum:
            return meta, f"{name} differs from its checksum"
    return meta, "" if content_hash(files) == digest else f"{META_NAME} differs from its digest"


def _format_of(path: Path) -> int | None:
    """Return the format of a finished stage, or None if its record cannot be read."""
    try:
        return int(json.loads((path / META_NAME).read_bytes())["format"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged: `find` says so if the stage is needed


def _publish(temp: Path, final: Path, meta: dict[str, Any], info: dict[str, Any]) -> Artifact:
    shutil.rmtree(temp / CHECKPOINT_NAME, ignore_errors=True)
    names = sorted(p.relative_to(temp).as_posix() for p in temp.rglob("*") if p.is_file())
    files = {name: file_hash(temp / name) for name in names}
    digest = content_hash(files)
    for name in names:  # contents must reach the disk before the rename publishes them
        with (temp / name).open("rb") as f:
            os.fsync(f.fileno())
    record = {**meta, "format": FORMAT_VERSION, "digest": digest, "files": files, "info": info}
    write_json(temp / META_NAME, record)
    mode = (temp / META_NAME).stat().st_mode
    for name in names:  # some libraries write files that nobody else may read
        (temp / name).chmod(mode)
    os.replace(temp, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return Artifact(final, digest, info)
