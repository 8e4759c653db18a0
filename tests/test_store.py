"""The store: atomic, verified, safe under kill and lock."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from helpers.small_stage import CONFIG, INPUTS, build, key

from w2s_fast.errors import W2SError
from w2s_fast.files import (
    content_hash,
    explain_write_errors,
    file_lock,
    read_sealed,
    tree_hash,
    write_bytes,
    write_json,
    write_sealed,
)
from w2s_fast.store import FORMAT_VERSION, Store, StoreWarning


def test_a_stage_is_published_once_and_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("weak", key(store)) is None
    done = build(store)
    again = build(store, "something else")  # not computed again
    assert (done.path / "a.txt").read_text() == "hello" and again.digest == done.digest
    artifact = store.find("weak", key(store))
    assert artifact is not None and artifact.digest == done.digest and artifact.info["seconds"] >= 0
    meta = json.loads((done.path / "stage.json").read_text())
    assert meta["config"] == CONFIG and meta["inputs"] == INPUTS
    assert sorted(meta["files"]) == ["a.txt", "sub/b.txt"]


def test_the_digest_is_of_content_and_the_key_of_configuration(tmp_path: Path) -> None:
    one, two, three = (Store(tmp_path / name) for name in "123")
    for store in (one, two, three):
        store.root.mkdir()
    assert build(one).digest == build(two).digest != build(three, "hallo").digest
    assert one.key("weak", {"lr": 1e-3}, {}) != one.key("weak", {"lr": 2e-3}, {})
    assert one.key("weak", {}, {"a": "1"}) != one.key("weak", {}, {"a": "2"})
    assert one.key("weak", {"a": 1, "b": 2}, {}) == one.key("weak", {"b": 2, "a": 1}, {})
    with pytest.raises(ValueError):
        content_hash({"lr": float("nan")})


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "meta", "half meta", "digest"])
def test_damage_is_noticed_and_computed_again(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    done = build(store)
    other = build(store, config={"lr": 5.0})
    file, meta = done.path / "a.txt", done.path / "stage.json"
    if damage == "flip":
        file.write_text("hellp")
    elif damage == "truncate":
        file.write_text("hel")
    elif damage == "remove":
        file.unlink()
    elif damage == "meta":
        meta.unlink()
    elif damage == "half meta":
        meta.write_text(meta.read_text()[:40])
    else:
        meta.write_text(meta.read_text().replace(done.digest, "0" * 64))
    with pytest.warns(StoreWarning, match="is damaged"):
        assert store.find("weak", key(store)) is None
    assert build(store).digest == done.digest
    assert store.find("weak", store.key("weak", {"lr": 5.0}, INPUTS)) == other


def test_a_record_with_one_wrong_bit_is_the_record_or_damage(tmp_path: Path) -> None:
    """Every byte of a stage's record, one of its bits, and every length."""
    store = Store(tmp_path)
    done = build(store)
    meta = done.path / "stage.json"
    whole = meta.read_bytes()
    bits = [bytes([*whole[:i], b ^ 1 << i % 8, *whole[i + 1 :]]) for i, b in enumerate(whole)]
    lengths = [whole[:n] for n in range(len(whole) - 1)]
    found = 0
    for content in [*bits, *lengths]:
        done.path.mkdir(exist_ok=True)
        for name in ("a.txt", "sub/b.txt"):
            (done.path / name).parent.mkdir(exist_ok=True)
            (done.path / name).write_text("hello" if name == "a.txt" else "b")
        meta.write_bytes(content)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            artifact = store.find("weak", key(store))
        assert artifact == (None if said else done) and len(said) <= 1
        found += artifact is not None
    assert found < 20  # line breaks and spaces between values


def test_a_folder_of_another_configuration_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    done = build(store)
    meta = read_sealed(done.path / "stage.json")
    write_sealed(done.path / "stage.json", {**meta, "key": "f" * 64})
    with pytest.raises(W2SError, match="holds the result of another configuration"):
        store.find("weak", key(store))
    assert (done.path / "a.txt").exists()


def test_the_record_of_another_stage_is_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    done = build(store)
    record = read_sealed(done.path / "stage.json")
    other = {**record, "key": "f" * 64, "files": {"b.txt": "0" * 64}}
    write_sealed(done.path / "stage.json", other)
    with pytest.warns(StoreWarning, match="is damaged.*computing it again"):
        assert store.find("weak", key(store)) is None


def test_a_failed_stage_leaves_nothing_but_its_checkpoint(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.building("weak", CONFIG, INPUTS) as b:
        b.checkpoint.mkdir()
        (b.checkpoint / "step").write_text("7")
        (b.path / "half").write_text("x")
        raise RuntimeError
    assert store.find("weak", key(store)) is None
    with store.building("weak", CONFIG, INPUTS) as b:
        assert (b.checkpoint / "step").read_text() == "7" and not (b.path / "half").exists()
        (b.path / "whole").write_text("x")
    assert b.artifact is not None
    assert sorted(p.name for p in b.artifact.path.iterdir()) == ["stage.json", "whole"]


def test_the_lock_is_exclusive_and_a_dead_owner_does_not_hold_it(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.write_text("999999")  # what a killed process leaves
    with (
        file_lock(lock, "taken by {pid}"),
        pytest.raises(W2SError, match=r"taken by \d+"),
        file_lock(lock, "taken by {pid}"),
    ):
        pass
    with file_lock(lock, "taken"):
        pass
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys, time, pathlib; from w2s_fast.store import file_lock\n"
         f"with file_lock(pathlib.Path({str(lock)!r})): print('held', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(W2SError, match=f"taken by {holder.pid}"), file_lock(lock, "taken by {pid}"):
        pass
    holder.kill()
    holder.wait()
    with file_lock(lock, "taken by {pid}"):
        pass


def test_a_stage_that_another_process_computes_is_awaited_and_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / ".locks").mkdir()
    owner = contextlib.ExitStack()
    owner.enter_context(file_lock(tmp_path / ".locks" / f"weak-{key(store)[:12]}"))
    threading.Timer(0.7, owner.close).start()
    told = f"waiting for process {os.getpid()}, which computes the same stage 'weak'"
    with (
        pytest.warns(StoreWarning, match=told) as said,
        store.building("weak", CONFIG, INPUTS) as b,
    ):
        (b.path / "a.txt").write_text("x")
    assert len(said) == 1 and b.artifact is not None


def test_files_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    write_bytes(path, b"{}")
    assert path.read_bytes() == b"{}" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert path.read_bytes() == b"{}"


def test_tree_hash_sees_names_and_contents_but_no_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = tree_hash(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x").write_text("2")
    assert tree_hash(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert tree_hash(tmp_path) != first


def test_stages_of_another_version_are_named_once(tmp_path: Path) -> None:
    """They are not used, and a folder of this version or a damaged one is no part of the line."""
    store = Store(tmp_path)
    for n in range(3):
        with store.building("weak", {"n": n}, {}) as b:
            (b.path / "file").write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.warn_of_other_formats()
    old, damaged, _ = sorted(tmp_path.glob("weak-*/stage.json"))
    old.write_text(old.read_text().replace(f'"format": {FORMAT_VERSION}', '"format": 1'))
    damaged.write_text("{")
    with pytest.warns(StoreWarning, match=f"holds 1 stages of another version .*{old.parent.name}"):
        store.warn_of_other_formats()


def test_a_file_that_is_missing_is_no_fault_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), explain_write_errors("results", tmp_path):
        (tmp_path / "absent").read_bytes()
