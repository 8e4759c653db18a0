"""Damage to what a killed run leaves: the same files in the end, and at most one line a file."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from campaigns import program
from helpers import ranks
from helpers.damage import damaged
from helpers.toy_run import config

from w2s_fast.config import to_yaml
from w2s_fast.distributed.world import SINGLE_PROCESS
from w2s_fast.errors import W2SError
from w2s_fast.pipeline.artifacts import LABELS, TRANSCRIPTS, write_texts
from w2s_fast.pipeline.experiment import label, run
from w2s_fast.pipeline.preflight import check_shared_store
from w2s_fast.pipeline.stages import predict
from w2s_fast.store import StageBuild, StoreWarning
from w2s_fast.tasks import Inputs

PART = "checkpoint/labels/part-00000.parquet"


class Killed(BaseException):
    pass


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was killed while it wrote its third part of weak labels."""
    monkeypatch.setattr(predict, "PART_ROWS", 16)
    write = predict.predict_split

    def stop(*args: Any) -> None:
        path = args[5]
        if "00002" in path.name:
            path.write_bytes(b"half")
            raise Killed
        write(*args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(predict, "predict_split", stop)
        label(config(tmp_path / "killed"))
    return tmp_path / "killed"


def _label(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Return the weak labels by file, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("w2s_fast.pipeline.experiment.redirect_store_warnings", lambda _: None)
            (labels,) = label(config(folder)).values()
        said = [str(w.message) for w in caught if w.category is StoreWarning]
    return {p.name: p.read_bytes() for p in labels.iterdir()}, said


def test_every_file_of_a_killed_run(killed: Path, tmp_path: Path) -> None:
    want, said = _label(tmp_path / "straight")
    assert len(want) == 3 and not said
    files = sorted(p.relative_to(killed) for p in killed.rglob("*") if p.is_file())
    (part,) = (f for f in files if f.as_posix().endswith(PART))
    for seed, name in enumerate(files):
        for content in damaged((killed / name).read_bytes(), 12 if name == part else 3, seed):
            folder = tmp_path / "resumed"
            shutil.copytree(killed, folder)
            (folder / name).write_bytes(content)
            got, said = _label(folder)
            assert got == want, name
            assert len(said) <= 1 and "\n" not in "".join(said), name
            assert name != part or "differs from its checksum; computing it again" in said[0]
            assert not list(folder.glob(f"cache/.{LABELS}-*"))
            shutil.rmtree(folder)


def test_finished_parts_are_not_computed_again(
    killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, parts = predict.predict_split, []

    def count(*args: Any) -> None:
        parts.append(args[5].name)
        write(*args)

    monkeypatch.setattr(predict, "predict_split", count)
    assert not _label(killed)[1]
    assert parts == ["part-00002.parquet"]


def _transcripts(folder: Path, stop: int = 3) -> tuple[dict[str, bytes], list[int]]:
    """Write three parts of two transcripts; return them, and the rows that were computed."""
    ids = tuple("abcdef")
    items = Inputs(ids, tuple(f"text {i}" for i in ids), None, ids)
    ctx: Any = SimpleNamespace(world=SINGLE_PROCESS, write=lambda f: f(), progress=lambda *_: None)
    computed: list[int] = []

    def write(rows: range, path: Path) -> None:
        if rows.start == 2 * stop:
            raise Killed
        computed.extend(rows)
        texts = [f"argument about {items.texts[r]} é" for r in rows]
        write_texts(path, [items.ids[r] for r in rows], texts)

    folder.mkdir(exist_ok=True)
    predict.write_parts(ctx, StageBuild(folder, None), TRANSCRIPTS, items, 2, write)
    return {p.name: p.read_bytes() for p in (folder / TRANSCRIPTS).iterdir()}, computed


def test_parts_of_transcripts(tmp_path: Path) -> None:
    want, _ = _transcripts(tmp_path / "straight")
    with pytest.raises(Killed):
        _transcripts(tmp_path / "killed", stop=2)
    part = "checkpoint/transcripts/part-00001.parquet"
    for content in damaged((tmp_path / "killed" / part).read_bytes(), 100):
        shutil.copytree(tmp_path / "killed", tmp_path / "resumed")
        (tmp_path / "resumed" / part).write_bytes(content)
        with pytest.warns(StoreWarning, match="part-00001.parquet differs from its checksum"):
            assert _transcripts(tmp_path / "resumed") == (want, [2, 3, 4, 5])
        shutil.rmtree(tmp_path / "resumed")
    assert _transcripts(tmp_path / "killed") == (want, [4, 5])


@pytest.mark.slow
@pytest.mark.dist
def test_a_kill_leaves_no_temporary_file(tmp_path: Path) -> None:
    """A run killed before it renames results.json, and then again to the end."""
    cfg = config(tmp_path / "out")
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(cfg))
    killed = ranks.program(
        program.__file__, "run", "--config", str(file), "--quiet",
        W2S_CAMPAIGN_KILL="results.json:1", W2S_CAMPAIGN_PLAIN="1",
    )  # fmt: skip
    killed.communicate(timeout=120)
    out = Path(cfg.output_dir)
    assert killed.returncode == -9 and len(list(out.glob(".results.json.*"))) == 1
    other = out / f".plot.png.{os.getppid()}"  # of another process, which runs
    other.touch()
    run(cfg)
    names = {
        "results.json", "items.json", "outcomes.parquet", "plot.png", "plot.svg", "report.html",
        "cache", ".lock", other.name,
    }  # fmt: skip
    assert {p.name for p in out.iterdir()} == names
    assert {p.name for p in cfg.store_dir.glob(".*")} == {".locks"}


def test_the_file_that_shows_a_shared_store(tmp_path: Path) -> None:
    """It does not stay, and a folder in its place is one line."""
    cfg = config(tmp_path)
    cfg.store_dir.mkdir(parents=True)
    (cfg.store_dir / f".shared.{2**30}").write_text("of a job that was killed")
    check_shared_store(cfg, SINGLE_PROCESS)
    assert not list(cfg.store_dir.iterdir())
    (cfg.store_dir / f".shared.{os.getpid()}").mkdir()
    with pytest.raises(W2SError, match=r"\.shared\.\d+ is a folder; expected a file"):
        check_shared_store(cfg, SINGLE_PROCESS)
