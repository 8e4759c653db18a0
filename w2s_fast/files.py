"""Files and folders: digests, atomic writes, checksums, locks, and errors that name the fix."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from w2s_fast.errors import W2SError

_LOCK_POLL_S = 0.2  # between two attempts to take a lock
_SEAL = "checksum"  # key of a file's checksum among the values that it covers
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
_NO_FOLDER = {*_FORBIDDEN, errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP}


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; a name that is too long for one is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


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
    """Return one digest over names and contents of all files under ``root`` that are not hidden.

    ``root`` may be a single file, whose own name does not count.
    """
    return content_hash({n: file_hash(root / n) for n in _visible(root)})


def tree_stamp(root: Path) -> str:
    """Return what changes when a file of ``tree_hash`` is written, without reading the files."""
    facts = {n: (root / n).stat() for n in _visible(root)}
    return content_hash({n: [f.st_size, f.st_mtime_ns, f.st_ino] for n, f in facts.items()})


def _visible(root: Path) -> list[str]:
    if root.is_file():
        return ["."]
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    return [n for n in names if not any(part.startswith(".") for part in n.split("/"))]


@contextlib.contextmanager
def explain_write_errors(what: str, where: Path) -> Iterator[None]:
    """Turn what disks, permissions and people do to a folder into a one-line error with the fix.

    Raises:
        W2SError: The disk is full, the folder may not be written or is gone, or a folder is in the
            way of a file; other errors pass through.
    """
    try:
        yield
    except Exception as err:
        code: int = getattr(err, "errno", None) or 0
        if _is_full(err):
            raise W2SError(
                f"no space left while writing {what} in {where}: free some space or choose another "
                "folder with --cache_dir, then run the same command; everything stored is kept"
            ) from err
        name = getattr(err, "filename", None)
        if code == errno.EISDIR:
            path = getattr(err, "filename2", None) or name  # the target of a rename
            raise W2SError(f"{path} is a folder; expected a file, remove the folder") from err
        file = Path(os.fsdecode(name or os.sep)).absolute()
        unmade = name and code in _NO_FOLDER and where.is_relative_to(file)  # it, or one above it
        if unmade or (code in _FORBIDDEN and file.is_relative_to(where)):
            raise W2SError(
                f"cannot write {what} in {where} ({os.strerror(code)}): choose a folder you may "
                "write with --out or --cache_dir"
            ) from err
        if _is_missing(err) and not where.exists():
            raise W2SError(
                f"{where} disappeared while {what} was written: move it back, if it was moved, and "
                "run the same command again"
            ) from err
        raise


def _is_full(err: BaseException | None) -> bool:
    """Return whether an error, or its cause, is a full disk or quota."""
    if err is None:
        return False
    # safetensors gives the operating system's error number in its message only.
    in_message = any(f"os error {n})" in str(err) for n in _FULL)
    return in_message or getattr(err, "errno", None) in _FULL or _is_full(err.__cause__)


def _is_missing(err: BaseException) -> bool:
    return getattr(err, "errno", None) == errno.ENOENT or "os error 2)" in str(err)


def open_no_link(path: str, flags: int) -> int:
    """Open a file for ``open(..., opener=)``.

    Raises:
        W2SError: It is a link, which may lead anywhere, or a folder.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as err:
        if err.errno == errno.ELOOP:
            raise W2SError(f"{path} is a symbolic link; expected a file, remove the link") from None
        if err.errno == errno.EISDIR:
            raise W2SError(f"{path} is a folder; expected a file, remove the folder") from None
        raise


def usual_mode() -> int:
    """Return the mode that the umask gives new files; safetensors writes for the owner alone."""
    umask = os.umask(0o077)  # it cannot be read without being set
    os.umask(umask)
    return 0o666 & ~umask


def read_text(path: Path) -> str:
    """Return the text (UTF-8) of a small file that a user names.

    Raises:
        OSError: It cannot be read, or is something else than a file: a pipe might never end, and
            gives its text only once.
        UnicodeDecodeError: It is not UTF-8.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a pipe or a device; expected a file", str(path))
    return path.read_bytes().decode("utf-8-sig")  # some editors begin with a byte order mark


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: a temporary file beside it, flushed to disk, then renamed."""
    temp = path.with_name(f".{path.name}.{os.getpid()}")  # see `remove_temporaries`
    try:
        with open(temp, "wb", opener=open_no_link) as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it; an error names the folder, and not a part of a path."""
    try:
        shutil.rmtree(folder)
    except OSError as err:
        err.filename = str(folder)
        raise


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of ``write_bytes`` that killed processes left in a folder."""
    for path in folder.glob(".*.*"):
        pid = path.suffix[1:]
        if pid.isdecimal() and not path.is_dir() and not _is_running(int(pid)):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as JSON with a checksum of its content, atomically."""
    text = json.dumps({**value, _SEAL: _seal(value)}, indent=1, sort_keys=True)
    write_bytes(path, f"{text}\n".encode())


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a file of ``write_sealed``; a ValueError says that its content is damaged."""
    try:
        value = json.loads(read_text(path))
        if value.pop(_SEAL) == _seal(value):
            return value
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{path.name} differs from its checksum")


def _seal(value: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of a JSON object as ``json.loads`` returns it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def file_lock(
    path: Path, taken: str | None = None, waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock file ``path``; the kernel releases it when the process ends, also by a kill.

    Args:
        path: Lock file; it stays and holds the number of its last owner.
        taken: Error message if another process holds it, with ``{pid}`` filled in. None: wait.
        waiting: Called with the owner's number several times a second while this process waits.

    Raises:
        W2SError: Another process holds the lock, and ``taken`` is given.
    """
    with open(path, "a+", encoding="utf-8", opener=open_no_link) as f:
        while not _try_lock(f):
            f.seek(0)
            owner = f.read().strip() or "unknown"
            if taken is not None:
                raise W2SError(taken.replace("{pid}", owner))
            if waiting is not None:
                waiting(owner)
            time.sleep(_LOCK_POLL_S)
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
        yield
