"""Malformed stores of labels and results: what another program or a crash left in a cache.

A damaged stage is computed again and gives the results of an undisturbed run; what cannot be taken
away is one error line.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from campaigns.malformed.attempt import Attempt, in_this_process
from campaigns.malformed.files import FILE_FAULTS, FileFault, cut_short, wrong_encoding
from campaigns.malformed.inputs import edit_json, run, toy_settings, write_settings
from campaigns.malformed.settings import Make

META = "stage.json"


@functools.cache
def finished() -> Path:
    """Return the folder of a finished run."""
    _kept.append(tempfile.TemporaryDirectory(prefix="campaign-finished-"))
    folder = Path(_kept[0].name)
    printed = in_this_process(run(write_settings(folder / "run.yaml", toy_settings())), folder, {})
    assert printed.code == 0, printed.err
    return folder


_kept: list[tempfile.TemporaryDirectory[str]] = []  # until the process ends


def _stage(folder: Path, rng: Random) -> Path:
    """Return a finished stage; mostly the weak labels."""
    stages = sorted(p for p in (folder / "out" / "cache").iterdir() if (p / META).exists())
    labels = [p for p in stages if p.name.startswith("labels-")]
    return labels[0] if rng.random() < 0.6 else rng.choice(stages)


def _of(change: Callable[[Path, Random], Any]) -> Make:
    """The same command again, after a change to a stored stage."""

    def make(folder: Path, rng: Random) -> Attempt:
        shutil.copytree(finished(), folder, dirs_exist_ok=True)
        before = json.loads((folder / "out" / "results.json").read_bytes())["runs"]
        shutil.rmtree(folder / "out" / ".lock", ignore_errors=True)
        (folder / "out" / "results.json").unlink()
        stage = _stage(folder, rng)
        change(stage, rng)
        names = (stage.name, "/out/cache")
        return Attempt(run(folder / "run.yaml"), names, may_pass=True, expected=before)

    return make


def _content(fault: FileFault) -> Make:
    """One file of the stage that is not its record."""

    def change(stage: Path, rng: Random) -> None:
        files = sorted(p for p in stage.rglob("*") if p.is_file() and p.name != META)
        fault(rng.choice(files), rng)

    return _of(change)


def _record(fault: FileFault) -> Make:
    return _of(lambda stage, rng: fault(stage / META, rng))


def _fields(*changes: dict[str, Any]) -> Make:
    return _of(lambda stage, rng: edit_json(stage / META, **rng.choice(changes)))


def _text(texts: Sequence[str]) -> Make:
    return _of(lambda stage, rng: (stage / META).write_text(rng.choice(texts)))


def _parquet(change: Callable[[dict[str, list[Any]], Random], dict[str, list[Any]]]) -> Make:
    """Weak labels with other rows."""

    def write(stage: Path, rng: Random) -> None:
        import pyarrow
        import pyarrow.parquet as pq

        files = sorted(stage.parent.glob("labels-*/**/*.parquet"))
        columns = change(pq.read_table(files[0]).to_pydict(), rng)
        pq.write_table(pyarrow.table(columns), files[0])

    return _of(write)


def _folder_is_file(stage: Path, rng: Random) -> None:
    shutil.rmtree(stage)
    stage.write_text("a file")


def _folder_is_link(stage: Path, rng: Random) -> None:
    shutil.rmtree(stage)
    stage.symlink_to(rng.choice((stage.name, "nothing-there", "..")))


def _swapped(stage: Path, rng: Random) -> None:
    """Two stages under each other's name."""
    others = sorted(p for p in stage.parent.iterdir() if (p / META).exists() and p != stage)
    other = rng.choice(others)
    stage.rename(stage.with_name("x"))
    other.rename(stage)
    stage.with_name("x").rename(other)


def _begun(name: str) -> Callable[[Path, Random], None]:
    """The hidden folder of a stage that a kill left, with something else in its place."""

    def change(stage: Path, rng: Random) -> None:
        shutil.rmtree(stage)
        hidden = stage.with_name(f".{stage.name}")
        if name == "file":
            hidden.write_text("a file")
        elif name == "link":
            hidden.symlink_to(rng.choice(("..", hidden.name, "nothing-there")))
        else:
            (hidden / "checkpoint").mkdir(parents=True)
            content = rng.choice((b"", b"{}", b"[]", b"\xff\xfe", b"null"))
            for file in ("state.json", "step-00000001", "latest", "labels"):
                (hidden / "checkpoint" / file).write_bytes(content)

    return change


def _locks(stage: Path, rng: Random) -> None:
    """Something else than files where the locks are."""
    shutil.rmtree(stage)
    locks = stage.parent / ".locks"
    shutil.rmtree(locks)
    rng.choice((lambda: locks.write_text(""), lambda: (locks / stage.name).mkdir(parents=True)))()


def _results(folder: Path, rng: Random) -> Attempt:
    """``report`` of results that another program wrote."""
    shutil.copytree(finished(), folder, dirs_exist_ok=True)
    path = folder / "out" / "results.json"
    values = json.loads(path.read_bytes())
    changes: tuple[Callable[[], Any], ...] = (
        lambda: values.update(runs=[]), lambda: values.update(runs=3),
        lambda: values.update(runs=[{}]),
        lambda: values.update(summary=None), lambda: values["runs"][0].update(weak="x"),
        lambda: values["runs"][0].update(weak=float("nan")), lambda: values.pop("gold"),
        lambda: values["runs"][0].pop("student"), lambda: values.update(provenance=[]),
        lambda: values.update(summary={"a": 1}), lambda: values["runs"][0].update(name=[1]),
    )  # fmt: skip
    rng.choice(changes)()
    path.write_text(json.dumps(values))
    if rng.random() < 0.4:
        rng.choice(list(FILE_FAULTS.values()))(path, rng)
    return Attempt(["report", "--out", "out"], ("results.json",), may_pass=True)


def _rows(n: int) -> Callable[[dict[str, list[Any]], Random], dict[str, list[Any]]]:
    return lambda columns, rng: {k: v[:n] for k, v in columns.items()}


FAULTS: dict[str, Make] = {
    **{f"content: {n}": _content(f) for n, f in FILE_FAULTS.items()},
    **{f"record: {n}": _record(f) for n, f in FILE_FAULTS.items()},
    "content cut short": _content(cut_short),
    "record cut short": _record(cut_short),
    "record in another encoding": _record(wrong_encoding),
    "record is other JSON": _text(
        ("[]", "3", "null", "{}", "{", "[" * 100_000, '{"checksum": 3}', '{"files": []}')
    ),
    "record changed": _fields(
        {"files": {}}, {"files": []}, {"digest": "0" * 64}, {"digest": 3}, {"format": "three"},
        {"format": 99}, {"key": "0"}, {"key": None}, {"info": None}, {"stage": "weak"},
        {"checksum": None}, {"files": {"../../secret": "0"}}, {"info": {"seconds": "x"}},
    ),
    "labels without rows": _parquet(_rows(0)),
    "labels of fewer rows": _parquet(_rows(5)),
    "labels twice": _parquet(lambda columns, rng: {k: v + v for k, v in columns.items()}),
    "labels reordered": _parquet(lambda columns, rng: columns | {"id": columns["id"][::-1]}),
    "labels of other ids": _parquet(
        lambda columns, rng: columns | {"id": [f"x{i}" for i in columns["id"]]}
    ),
    "labels that are no numbers": _parquet(
        lambda columns, rng: columns | {"probs": [[float("nan")] * 2] * len(columns["id"])}
    ),
    "labels of other classes": _parquet(
        lambda columns, rng: columns | {"probs": [[0.2, 0.3, 0.5]] * len(columns["id"])}
    ),
    "labels of text": _parquet(
        lambda columns, rng: columns | {"probs": ["half"] * len(columns["id"])}
    ),
    "labels without a column": _parquet(lambda columns, rng: {"id": columns["id"]}),
    "folder is a file": _of(_folder_is_file),
    "folder is a link": _of(_folder_is_link),
    "folders swapped": _of(_swapped),
    "begun: a file": _of(_begun("file")),
    "begun: a link": _of(_begun("link")),
    "begun: other content": _of(_begun("content")),
    "locks": _of(_locks),
    "results": _results,
}  # fmt: skip
