"""A store whose folder is full, gone, in the way, or not writable: one line, and nothing lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers.paths import PYTHONPATH
from helpers.small_stage import CONFIG, INPUTS, build, key
from safetensors.torch import save_file

from w2s_fast.errors import W2SError
from w2s_fast.files import (
    explain_write_errors,
    file_lock,
    write_bytes,
)
from w2s_fast.store import Store, StoreWarning

_FILL = """
import resource, sys
from pathlib import Path
from w2s_fast.errors import W2SError
from w2s_fast.store import FORMAT_VERSION, StoreWarning, Store
store = Store(Path(sys.argv[1]))
with store.building("weak", {"n": 1}, {}) as b:
    (b.path / "small").write_bytes(b"x" * 1000)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with store.building("labels", {}, {}) as b:
        (b.path / "large").write_bytes(b"x" * 10000)
except W2SError as err:
    print(err)
"""


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """The process may not write files above 4 KiB: a real failure of the operating system."""
    done = subprocess.run(
        [sys.executable, "-c", _FILL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("no space left while writing stage 'labels' in ")
    assert done.stdout.count("\n") == 1 and "--cache_dir" in done.stdout
    store = Store(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.find("weak", store.key("weak", {"n": 1}, {})) is not None
        assert store.find("labels", store.key("labels", {}, {})) is None
    with store.building("labels", {}, {}) as b:  # there is space again
        (b.path / "large").write_bytes(b"x" * 10000)
    assert b.artifact is not None


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(W2SError, match="cannot write stage 'weak'"):
        build(Store(tmp_path / "cache"))


def test_a_store_that_is_moved_away_is_one_line(tmp_path: Path) -> None:
    """Whatever happens next; nothing is made in its place, and it goes on when it is back."""
    store, elsewhere = Store(tmp_path / "cache"), tmp_path / "elsewhere"
    store.root.mkdir()

    def bytes_file(folder: Path) -> None:
        (folder / "a").write_bytes(b"x")

    def tensor_file(folder: Path) -> None:
        save_file({"a": torch.zeros(1)}, folder / "a")

    for write in (bytes_file, tensor_file):
        with (
            pytest.raises(W2SError, match=r"cache disappeared while stage 'weak' was written") as e,
            store.building("weak", CONFIG, INPUTS) as b,
        ):
            os.replace(store.root, elsewhere)
            write(b.path)
        assert "\n" not in str(e.value) and not store.root.exists()
        with pytest.raises(W2SError, match="cache disappeared"):
            build(store)
        os.replace(elsewhere, store.root)
    assert build(store).path.is_dir()


def test_a_folder_in_the_way_of_a_file_is_one_line(tmp_path: Path) -> None:
    store, problem = Store(tmp_path), "is a folder; expected a file, remove the folder"
    with pytest.raises(W2SError, match=problem), store.building("weak", CONFIG, INPUTS) as b:
        (b.path / "x").mkdir()
        write_bytes(b.path / "x", b"")
    lock = store.root / ".locks" / f"weak-{key(store)[:12]}"
    lock.unlink()
    lock.mkdir()
    with pytest.raises(W2SError, match=problem):
        build(store)


@pytest.mark.parametrize("folder", ["/proc/foo", "/proc/foo/bar", "/" + "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(folder: str) -> None:
    with (
        pytest.raises(W2SError, match=rf"cannot write results in {folder} \(.*\): choose a folder"),
        explain_write_errors("results", Path(folder)),
    ):
        Path(folder).mkdir(parents=True, exist_ok=True)


def test_no_link_is_followed(tmp_path: Path) -> None:
    """A shared folder may hold links of others, to what only this user may write."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("kept")
    lock = tmp_path / ".lock"
    lock.symlink_to(other / "file")
    with pytest.raises(W2SError, match=r"\.lock is a symbolic link"), file_lock(lock):
        pass
    store = Store(tmp_path / "store")
    store.root.mkdir()
    (store.root / f".weak-{key(store)[:12]}").symlink_to(other)
    done = build(store)
    assert done.path.is_dir() and not done.path.is_symlink()
    assert [p.name for p in other.iterdir()] == ["file"]
    assert (other / "file").read_text() == "kept"


def test_a_link_in_place_of_checkpoints_is_refused(tmp_path: Path) -> None:
    """Before a stage is computed; one that appears meanwhile goes, and what it leads to stays."""
    other = tmp_path / "disk"
    (other / "step-1").mkdir(parents=True)
    store = Store(tmp_path / "store")
    store.root.mkdir()
    folder = store.root / f".weak-{key(store)[:12]}"
    folder.mkdir()
    (folder / "checkpoint").symlink_to(other)
    with pytest.raises(W2SError, match="checkpoint is a symbolic link, and checkpoints are not"):
        build(store)
    (folder / "checkpoint").unlink()
    (folder / "left").symlink_to(other)
    with store.building("weak", CONFIG, INPUTS) as b:
        (b.path / "a").write_text("a")
        b.checkpoint.symlink_to(other)
    assert b.artifact is not None
    assert sorted(p.name for p in b.artifact.path.iterdir()) == ["a", "stage.json"]
    assert (other / "step-1").is_dir()


@pytest.mark.parametrize("name", ["b.txt", "labels/part-00000.sync-conflict.parquet"])
def test_a_file_that_is_no_part_of_a_finished_stage_is_named(name: str, tmp_path: Path) -> None:
    """It might be read as one; hidden files are not."""
    store = Store(tmp_path)
    done = build(store)
    for hidden in (".DS_Store", ".nfs01/x"):
        (done.path / hidden).parent.mkdir(exist_ok=True)
        (done.path / hidden).write_text("x")
    assert store.find("weak", key(store)) == done
    stray = done.path / name
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("x")
    with pytest.raises(W2SError, match=rf"{name} is no part of the finished stage 'weak': move"):
        store.find("weak", key(store))
    stray.unlink()
    assert store.find("weak", key(store)) == done


def test_a_stage_can_be_read_by_those_who_may_read_the_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.building("weak", CONFIG, INPUTS) as b:
        (b.path / "model").write_text("weights")
        (b.path / "model").chmod(0o600)  # as safetensors writes
    assert b.artifact is not None
    modes = {p.stat().st_mode for p in b.artifact.path.iterdir()}
    assert len(modes) == 1, "the mode that the umask gives"
    assert modes != {0o100600}


def test_a_stage_that_may_not_be_read_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    done = build(store)

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    for name in ("pathlib.Path.read_bytes", "w2s_fast.store.file_hash"):
        with monkeypatch.context() as patch:
            patch.setattr(name, refuse)
            with pytest.raises(W2SError, match=r"cannot read .*Permission denied.*--cache_dir"):
                store.find("weak", key(store))
    assert store.find("weak", key(store)) == done


def test_a_damaged_stage_that_cannot_be_removed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    done = build(store)
    (done.path / "a.txt").write_text("other")

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "a.txt")  # a part, as shutil names it

    monkeypatch.setattr("shutil.rmtree", refuse)
    with (
        pytest.warns(StoreWarning, match="is damaged"),
        pytest.raises(W2SError, match="cannot write stage 'weak' in .*Read-only file system"),
    ):
        store.find("weak", key(store))


_FORBIDDEN = """
import os, sys
from pathlib import Path
from helpers.permissions import obey_permissions
from w2s_fast.errors import W2SError
from w2s_fast.store import Store
obey_permissions()
store = Store(Path(sys.argv[1]))
for _ in range(2):
    try:
        with store.building("weak", {}, {}) as b:
            step = b.checkpoint / "step-1"
            if not step.exists():
                step.mkdir(parents=True)
                (step / "state").write_text("x")
            step.chmod(int(sys.argv[2], 8))
            (b.path / "a").write_text("a")
    except W2SError as err:
        print(err)
"""


@pytest.mark.parametrize("mode", ["555", "000"])
def test_a_checkpoint_that_cannot_be_removed_is_not_published(mode: str, tmp_path: Path) -> None:
    """A real failure of the operating system; and the same stage once it can be."""
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", _FORBIDDEN, str(tmp_path), mode]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stderr == "" and done.stdout.count("cannot write stage 'weak' in ") == 2
    assert not list(tmp_path.glob("weak-*"))
    for folder in tmp_path.glob(".weak-*/checkpoint/*"):
        folder.chmod(0o755)
    with Store(tmp_path).building("weak", {}, {}) as b:
        (b.path / "a").write_text("a")
    assert b.artifact is not None and {p.name for p in b.artifact.path.iterdir()} == {
        "a", "stage.json"
    }  # fmt: skip


def test_a_kill_while_checkpoints_are_removed_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)

    def killed(folder: Path) -> None:
        (folder / "step" / "state").unlink()
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("w2s_fast.store.remove_tree", killed)
        with store.building("weak", {}, {}) as b:
            (b.checkpoint / "step").mkdir(parents=True)
            (b.checkpoint / "step" / "state").write_text("x")
            (b.path / "a").write_text("a")
    with store.building("weak", {}, {}) as b:
        assert b.artifact is not None and b.artifact == store.find(
            "weak", store.key("weak", {}, {})
        )
    assert {p.name for p in b.artifact.path.iterdir()} == {"a", "stage.json"}
    assert not list(tmp_path.glob(".weak-*"))


def test_a_relative_path_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(W2SError, match="cannot write stages in .*Permission denied"),
        explain_write_errors("stages", tmp_path / "cache"),
    ):
        raise PermissionError(13, "Permission denied", "cache/.probe")
    with pytest.raises(PermissionError), explain_write_errors("stages", tmp_path / "cache"):
        raise PermissionError(13, "Permission denied")
