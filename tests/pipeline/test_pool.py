"""Worker processes: what they import, and when they end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from w2s_fast.config import RunConfig
from w2s_fast.distributed import heartbeat
from w2s_fast.distributed.interpreter import module_command
from w2s_fast.pipeline.pool import JobObserver, ProcessPool, _environment, _Worker


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that exists once a module of the working folder has been imported."""
    folder, mark = tmp_path / "work", tmp_path / "imported"
    folder.mkdir()
    for name in ("os", "json", "select", "runpy", "rich", "torch", "w2s_fast"):
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.chdir(folder)
    return mark


class Silent(JobObserver):
    """Shows nothing."""


def test_a_worker_imports_nothing_from_the_working_folder(planted: Path, tmp_path: Path) -> None:
    cfg = RunConfig(output_dir=str(tmp_path / "out"))
    with ProcessPool(cfg, 1, [{}], Silent()) as pool:
        worker = pool._start()
    assert worker.process.returncode == 0, worker.log.read_text()
    assert not planted.exists()


def test_a_worker_that_has_ended_does_not_hide_the_reason(tmp_path: Path) -> None:
    """What was written for it and not sent is of no use to anyone."""
    cfg = RunConfig(output_dir=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt), ProcessPool(cfg, 1, [{}], Silent()) as pool:
        worker = pool._start()
        worker.process.kill()
        worker.process.wait()
        assert worker.process.stdin is not None
        worker.process.stdin.write("{}")
        raise KeyboardInterrupt


def test_a_reply_that_is_cut_off_is_the_end_of_its_worker(tmp_path: Path) -> None:
    pool = ProcessPool(RunConfig(output_dir=str(tmp_path / "out")), 1, [{}], Silent())
    half = [sys.executable, "-c", "print('{\"done\": ')"]
    with subprocess.Popen(half, stdout=subprocess.PIPE, text=True) as process:
        pool._listen(worker := _Worker(0, process, tmp_path / "log"))
    assert pool._events.get_nowait() == (worker, None)


def test_modules_of_the_working_folder(planted: Path) -> None:
    command = [*module_command("json.tool"), "--compact"]
    done = subprocess.run(command, input="[1, 2]", capture_output=True, text=True, check=True)
    assert done.stdout == "[1,2]\n"
    assert not planted.exists()


def test_the_guard_imports_nothing_from_the_working_folder(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = SimpleNamespace(size=2, rank=0, all_gather_object=lambda name: [name] * 2)
    monkeypatch.setattr(heartbeat.Heartbeat, "_connect", lambda _: None)
    guard = heartbeat.Heartbeat(world, 60.0)._guard  # type: ignore[arg-type]
    guard.communicate()
    assert guard.returncode == 0
    assert not planted.exists()


def test_a_worker_whose_parent_has_ended_ends(tmp_path: Path) -> None:
    """The parent may end while the worker still imports; its standard input can stay open."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command = [*module_command("w2s_fast.pipeline.worker"), str(gone.pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=_environment(1)) as worker:
        try:
            assert worker.wait(60) == 1
        finally:
            worker.kill()


def test_a_log_follows_no_link(tmp_path: Path) -> None:
    cfg = RunConfig(output_dir=str(tmp_path / "out"))
    logs, other = cfg.store_dir / ".logs", tmp_path / "other"
    logs.mkdir(parents=True)
    other.write_text("kept")
    (logs / "worker-0.txt").symlink_to(other)
    with pytest.raises(ValueError, match=r"worker-0.txt is a symbolic link"):
        ProcessPool(cfg, 1, [{}], Silent())._start()
    assert other.read_text() == "kept"
