"""A run needs to write only what it computes."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.toy_run import config

import w2s_fast
from w2s_fast.config import to_yaml
from w2s_fast.pipeline.export import export


def without_writing(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command while ``folder`` may not be written, by root neither."""
    command = [sys.executable, "-m", "w2s_fast", *args]
    if os.geteuid() == 0:
        if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
            pytest.skip("this machine has no mount namespaces")
        at = shlex.quote(str(folder))
        mount = f"mount --bind {at} {at} && mount -o remount,bind,ro {at} && "
        command = ["unshare", "-m", "sh", "-c", mount + shlex.join(command)]
    else:
        folder.chmod(0o555)
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        folder.chmod(0o755)


def test_a_finished_run_needs_no_writable_store(tmp_path: Path) -> None:
    cfg = config(tmp_path / "out", cache_dir=str(tmp_path / "store"))
    w2s_fast.run(cfg)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(cfg))
    before = (tmp_path / "out" / "results.json").read_text()
    shutil.rmtree(tmp_path / "out")
    args = ["run", "--config", str(file), "--quiet"]
    done = without_writing(tmp_path / "store", *args)
    assert done.returncode == 0, done.stderr
    after = (tmp_path / "out" / "results.json").read_text()
    assert after.partition('"provenance"')[0] == before.partition('"provenance"')[0]
    done = without_writing(tmp_path / "store", *args, "--seeds", "1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "cannot write stages" in done.stderr and "--cache_dir" in done.stderr


def test_export_needs_no_output_folder(tmp_path: Path) -> None:
    scratch = {"source": "scratch", "hidden": 8, "heads": 2}
    cfg = config(tmp_path / "out", cache_dir=str(tmp_path / "store"), student=scratch)
    w2s_fast.run(cfg)
    shutil.rmtree(tmp_path / "out")
    export(cfg, "student/0/xent", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").is_file() and not (tmp_path / "out").exists()
