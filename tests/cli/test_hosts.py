"""Hosts of a launched job: their file, what travels to them, and how a job on them ends."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from w2s_fast.cli import hosts as module
from w2s_fast.cli.hosts import check_hosts, exports, read_hosts, runner_class
from w2s_fast.errors import W2SError

SECRET = "hf_secret_0123456789"


def tool(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)
    return folder / name


def test_hostfiles(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(
        "# the rack\nnode-a slots=4\n\nnode-b slots=4  # the new one\nme@10.0.0.1 slots=2\n"
    )
    assert read_hosts(str(path)) == {"node-a": 4, "node-b": 4, "me@10.0.0.1": 2}
    for text, message in (
        ("node-a\n", "hosts:1: 'node-a'; expected `name slots=8`"),
        ("node-a slots=0\n", "expected `name slots=8`"),
        ("a slots=1\na slots=1\n", "hosts:2: host 'a' appears twice"),
        ("# none\n", "names no host"),
    ):
        path.write_text(text)
        with pytest.raises(W2SError, match=message):
            read_hosts(str(path))
    path.write_bytes("nœud slots=1\n".encode("latin-1", "replace") + b"\xff")
    with pytest.raises(W2SError, match="is not UTF-8"):
        read_hosts(str(path))
    with pytest.raises(W2SError, match="cannot read hostfile 'nowhere'"):
        read_hosts("nowhere")


@pytest.mark.parametrize(
    "host",
    ["-oProxyCommand=touch${IFS}x", "me@-oA", "a,b", "a[1-9]", "a;b", "$(b)", "exec:a"],
)
def test_a_host_is_a_name(host: str, tmp_path: Path) -> None:
    """ssh, pdsh and shells read other characters as options, lists or commands."""
    path = tmp_path / "hosts"
    path.write_text(f"{host} slots=1\n")
    with pytest.raises(W2SError, match="is not the name of a host"):
        read_hosts(str(path))


def test_hosts_that_do_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tool(tools, "pdsh", "exit 0")
    # Only what follows "--" is a host.
    tool(tools, "ssh", 'case "$*" in *" -- node-b true") exit 255;; *" -- "*) ;; *) exit 1; esac')
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    check_hosts(["node-a", "node-c"], None)
    with pytest.raises(W2SError, match="no answer from node-b over ssh within 5 s"):
        check_hosts(["node-a", "node-b", "node-c"], 2222)
    monkeypatch.setenv("PATH", str(tools))
    for name in ("ssh", "pdsh"):
        (tools / name).unlink()
        with pytest.raises(W2SError, match=f"{name} is not installed"):
            check_hosts(["node-a"], None)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Return the commands that start and end a job; its interpreter prints where it is, and waits.

    The job runs in a folder with a space, on hosts that are shells of this machine.
    """
    pytest.importorskip("deepspeed")
    folder = tmp_path / "my; runs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    python = 'pwd; echo "$NCCL_TEST|$PYTHONPATH"; exec -a "$0 $*" sleep 60 >&-'
    monkeypatch.setattr(sys, "executable", str(tool(tmp_path / "a b", "python", python)))
    monkeypatch.setenv("PYTHONPATH", "/src")

    def make(**env: str) -> list[list[str]]:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        names = ("launcher_args", "ssh_port", "venv_script", "no_python", "module", "save_pid",
                 "no_local_rank", "enable_each_rank_log", "master_addr", "master_port")  # fmt: skip
        args = dict.fromkeys(names) | {"launcher_args": "", "user_args": [], "user_script": "x"}
        runner = runner_class()(argparse.Namespace(**args), "")
        for name, value in os.environ.items():
            runner.add_export(name, f"{folder}:{value}" if name == "PYTHONPATH" else value)
        start, end, _ = runner.get_cmd({}, {"node-a": [0], "node-b": [0]})
        return [start, end]

    return make


def remote(command: list[str]) -> list[str]:
    """Return what pdsh starts on a host."""
    assert command[:6] == ["pdsh", "-S", "-f", "1024", "-w", "node-a,node-b"]
    return ["bash", "-c", " ".join(command[6:])]


def test_what_travels(
    commands: Callable[..., list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values arrive unchanged, also those that a shell would expand; no secret is in a command."""
    names = ("HF_TOKEN", "HF_HUB_TOKEN", "MLFLOW_TRACKING_PASSWORD", "W2S_KEY", "OPENAI_API_KEY")
    value = 'a $HOME `id` "b"'
    start, end = commands(**dict.fromkeys(names, SECRET), NCCL_TEST=value)
    assert SECRET not in " ".join([*start, *end, *exports(), *exports().values()])
    assert exports()["NCCL_TEST"] == value
    with subprocess.Popen(remote(start), stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        lines = job.stdout.read().splitlines()
        job.kill()
    assert lines == [os.getcwd(), f"{value}|/src"]


def test_no_address_with_a_password_travels(commands: Callable[..., list[list[str]]]) -> None:
    """Command lines of ssh and pdsh are visible; an address without a user name stays."""
    start, end = commands(
        HF_ENDPOINT=f"https://me:{SECRET}@mirror", NCCL_TEST=f"x,http://{SECRET}@h:1/a",
        PYTHONPATH="/src", HF_HOME="hf://mirror/a",
    )  # fmt: skip
    assert SECRET not in " ".join([*start, *end, *exports().values()])
    assert not {"HF_ENDPOINT", "NCCL_TEST"} & set(exports())
    assert exports()["HF_HOME"] == "hf://mirror/a"


def test_the_end_of_a_job_ends_no_other(commands: Callable[..., list[list[str]]]) -> None:
    (first, end), (second, _) = commands(NCCL_TEST=""), commands()
    jobs = [subprocess.Popen(remote(start), stdout=subprocess.PIPE) for start in (first, second)]
    try:
        for job in jobs:
            assert job.stdout is not None
            job.stdout.read()  # it waits now
        time.sleep(0.2)
        assert subprocess.run(remote(end), check=False).returncode == 0
        assert jobs[0].wait(10) != 0
        assert jobs[1].poll() is None
    finally:
        for job in jobs:
            job.kill()
            job.wait()


def test_the_runner_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's ``main`` looks its runner up by the name that is replaced."""
    pytest.importorskip("deepspeed")
    from deepspeed.launcher import runner

    assert "PDSHRunner" in runner.main.__code__.co_names
    monkeypatch.setattr(runner, "PDSHRunner", None)
    monkeypatch.setattr(runner, "main", lambda: None)
    module.main()
    assert runner.PDSHRunner.__name__ == "Runner"
