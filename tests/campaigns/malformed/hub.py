"""Malformed local copies of a data set of the Hugging Face hub, and what stands beside the rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from campaigns.malformed.attempt import Attempt
from campaigns.malformed.files import FILE_FAULTS, FileFault, cut_short, wrong_encoding
from campaigns.malformed.inputs import checkpoint, local_settings, run, write_settings
from campaigns.malformed.settings import Make

SPLITS = ("train", "validation")
Cells = list[dict[str, Any]]


def _copy(folder: Path, change: Callable[[Cells, Random], Any], rng: Random, suffix: str) -> Path:
    """Write ``boolq/SPLIT.suffix``, of which one split is changed."""
    import pyarrow
    import pyarrow.parquet

    (folder / "boolq").mkdir()
    changed = rng.choice(SPLITS)
    for split in SPLITS:
        cells: Cells = [
            {"passage": f"{split} text {i}", "question": f"is it {i}", "answer": i % 2 == 0}
            for i in range(60)
        ]
        if split == changed:
            change(cells, rng)
        path = folder / "boolq" / f"{split}{suffix}"
        if suffix == ".parquet":
            columns = {n: [c.get(n) for c in cells] for n in {n: 0 for c in cells for n in c}}
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
        else:
            path.write_text("".join(json.dumps(c) + "\n" for c in cells))
    return folder / "boolq" / f"{changed}{suffix}"


def _attempt(folder: Path, *names: str, may_pass: bool = False, **task: Any) -> Attempt:
    checkpoint(folder / "student")
    settings = local_settings("boolq", name="boolq", **task)
    return Attempt(
        run(write_settings(folder / "run.yaml", settings)), names or ("boolq",), may_pass
    )


def _rows(
    change: Callable[[Cells, Random], Any], *suffixes: str, may_pass: bool = False, **task: Any
) -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        _copy(folder, change, rng, rng.choice(suffixes or (".parquet", ".jsonl")))
        return _attempt(folder, may_pass=may_pass, **task)

    return make


def _file(fault: FileFault, suffix: str = "") -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        path = _copy(folder, lambda *_: None, rng, suffix or rng.choice((".parquet", ".jsonl")))
        fault(path, rng)
        return _attempt(folder)

    return make


def _beside(name: str, *contents: bytes, may_pass: bool = True) -> Make:
    """Another file in the folder, which is not read or whose damage says nothing of the rows."""

    def make(folder: Path, rng: Random) -> Attempt:
        _copy(folder, lambda *_: None, rng, ".parquet")
        path = folder / "boolq" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.choice(contents))
        return _attempt(folder, may_pass=may_pass)

    return make


def _folder(change: Callable[[Path, Random], Any]) -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        _copy(folder, lambda *_: None, rng, ".parquet")
        change(folder / "boolq", rng)
        return _attempt(folder)

    return make


def _set(name: str, *values: Any) -> Callable[[Cells, Random], None]:
    def change(cells: Cells, rng: Random) -> None:
        value = rng.choice(values)
        for cell in cells:
            cell[name] = value

    return change


def _drop(name: str) -> Callable[[Cells, Random], None]:
    return lambda cells, rng: [c.pop(name) for c in cells]


def _empty(folder: Path, rng: Random) -> None:
    for path in folder.iterdir():
        path.unlink()


def _to_file(folder: Path, rng: Random) -> None:
    shutil.rmtree(folder)
    folder.write_text("rows")


def _to_link(folder: Path, rng: Random) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(rng.choice((folder.name, "nothing-there")))


def _renamed(folder: Path, rng: Random) -> None:
    path = folder / f"{rng.choice(SPLITS)}.parquet"
    path.rename(
        folder / rng.choice(("dev.parquet", "train_.txt2", "all.parquet", "trainx.parquet"))
    )


_DAMAGED = (b"", b"{", b"[]", b"\xff\xfe", b"---\n- [\n---\n", b'{"boolq": {"features": 3}}')
FAULTS: dict[str, Make] = {
    **{f"file: {n}": _file(f) for n, f in FILE_FAULTS.items()},
    "encoding": _file(wrong_encoding, ".jsonl"),
    "cut short": _file(cut_short, ".parquet"),
    "column missing": _rows(lambda cells, rng: _drop(rng.choice(("passage", "answer")))(cells,
        rng)),
    "column of nulls": _rows(_set("question", None)),
    "answers": _rows(_set("answer", "perhaps", 2, -1, 0.5, "")),
    "answers nested": _rows(_set("answer", [True], {"a": 1})),
    "text nested": _rows(_set("passage", ["a"], {"a": "b"})),
    "one answer": _rows(_set("answer", True), balance=True),
    "no rows": _rows(lambda cells, rng: cells.clear(), ".jsonl"),
    "too few rows": _rows(lambda cells, rng: cells.__delitem__(slice(9, None))),
    "one passage": _rows(_set("passage", "the same"), may_pass=True),
    "folder missing": _folder(lambda folder, rng: shutil.rmtree(folder)),
    "folder empty": _folder(_empty),
    "folder is a file": _folder(_to_file),
    "folder is a link": _folder(_to_link),
    "split renamed": _folder(_renamed),
    "dataset_infos.json": _beside("dataset_infos.json", *_DAMAGED),
    "README.md": _beside("README.md", *_DAMAGED),
    "dataset_info.json": _beside("dataset_info.json", *_DAMAGED),
    "hidden cache": _beside(".cache/huggingface/train.parquet.metadata", *_DAMAGED),
    "script": _beside("boolq.py", b"raise SystemExit('executed')"),
    "shard that is no shard": _beside("train-00001-of-00002.parquet", b"", b"PAR1", may_pass=False),
    "other format beside": _beside("train.jsonl", b"{", b"\xff", may_pass=False),
}  # fmt: skip
