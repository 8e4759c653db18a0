"""``w2s-fast launch``: options, hosts, ports, and the command it builds."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
from pathlib import Path

import pytest

from w2s_fast.cli import launch as module
from w2s_fast.cli.launch import (
    LaunchOptions,
    build_command,
    check_port,
    job_exit_code,
    launch,
    parse,
)
from w2s_fast.cli.main import main
from w2s_fast.distributed.heartbeat import EXIT_CODE
from w2s_fast.distributed.network import free_port
from w2s_fast.errors import W2SError

pytest.importorskip("deepspeed")


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text("seeds: [0]\nstudent_train: {batch_size: 32}\n")
    return str(path)


@pytest.fixture
def hosts(tmp_path: Path) -> str:
    path = tmp_path / "hosts"
    path.write_text("# the rack\nnode-a slots=4\n\nnode-b slots=4  # the new one\n")
    return str(path)


def test_options() -> None:
    got = parse(["--hostfile=h", "--master-port", "5", "--no-ssh", "--node-rank", "1", "r.yaml",
                 "--seeds", "3"])  # fmt: skip
    assert got == LaunchOptions("r.yaml", ("--seeds", "3"), "h", None, None, 5, None, True, 1)
    for args, message in (
        (["--hostfil", "h", "r.yaml"], "unknown option '--hostfil'; did you mean '--hostfile'"),
        (["--processes", "two", "r.yaml"], "--processes is 'two'; expected a number"),
        (["--processes", "0", "r.yaml"], "--processes is '0'; expected at least 1"),
        (["--processes", "9" * 5000, "r.yaml"], "expected a number"),
        (["--processes"], "--processes needs a value"),
        (["--no-ssh"], "no configuration file"),
    ):
        with pytest.raises(W2SError, match=message):
            parse(args)


def test_command(hosts: str, config: str) -> None:
    command = build_command(
        LaunchOptions(config, ("--seeds", "1"), hosts, master_addr="10.0.0.1"), {"a": 1}
    )
    line = " ".join(command)
    assert f"--hostfile {hosts}" in line and "--master_addr 10.0.0.1 --master_port 29500" in line
    assert line.endswith(f"--module w2s_fast run --config {config} --seeds 1")


def test_codes_of_a_job_that_lost_a_process() -> None:
    """Signals 9 and 15 and a lost host give one code; other exit codes are passed on."""
    assert [job_exit_code(c) for c in (256 - 9, 256 - 15, 255)] == [EXIT_CODE] * 3
    assert [job_exit_code(c) for c in (0, 1, 2, EXIT_CODE, 130)] == [0, 1, 2, EXIT_CODE, 130]


def test_words_reach_other_hosts_as_they_are(hosts: str, config: str) -> None:
    """Arguments pass unchanged through DeepSpeed's quoting and a shell."""
    from deepspeed.launcher.multinode_runner import PDSHRunner

    words = ["posterior|confident", "a b", "$HOME", 'it\'s; $x `y` \\ "z"', "plain", "*"]
    command = build_command(LaunchOptions(config, tuple(words), hosts), {"a": 1, "b": 1})
    runner = PDSHRunner(argparse.Namespace(user_args=command[-len(words) :], user_script="x"), "")
    line = " ".join(["printf '%s\\n'", *runner.parse_user_args()])
    assert subprocess.check_output(["sh", "-c", line], text=True).splitlines() == words
    alone = build_command(LaunchOptions(config, ("a|b",)), None)
    assert alone[-1] == "a|b", "no shell in between"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands of jobs, which are not run; ssh reaches every host but one."""
    tools, commands = tmp_path / "bin", list[list[str]]()
    tools.mkdir()
    for name, script in (
        ("pdsh", f"echo $* > {tmp_path}/pdsh.log"),
        ("ssh", 'case "$*" in *gone*) exit 255;; esac; echo 10.0.0.7'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)

    def run_job(command: list[str], *_: object, **__: object) -> int:
        commands.append(command)
        return 0

    monkeypatch.setattr(module, "run_job", run_job)
    return commands


def start_on(host: str, tmp_path: Path, config: str, *options: str) -> None:
    path = tmp_path / "one"
    path.write_text(f"{host} slots=1\n")
    port = ["--master-port", str(free_port())]
    assert launch(parse(["--hostfile", str(path), *port, *options, config])) == 0


@pytest.mark.parametrize(
    ("host", "options"),
    [("gpu-node-7", []), ("me@localhost", []), ("10.0.0.7", []),
     ("localhost", ["--ssh-port", "2222"])],
)  # fmt: skip
def test_one_other_host_is_reached_over_ssh(
    host: str, options: list[str], started: list[list[str]], tmp_path: Path, config: str
) -> None:
    """A user or a port of ssh says that not this host is meant, or not this user."""
    start_on(host, tmp_path, config, *options)
    assert {"w2s_fast.cli.hosts", "--force_multi"} <= set(started[0])
    assert "--no_ssh" not in started[0]


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.0.0.1", "::1", "box", "box.lan"])
def test_this_host_alone_needs_no_ssh(
    host: str,
    started: list[list[str]],
    tmp_path: Path,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DeepSpeed asks an ssh server for the address of a host, without these options."""
    monkeypatch.setattr(socket, "gethostname", lambda: "box.lan")
    start_on(host, tmp_path, config)
    line = " ".join(started[0])
    assert "deepspeed.launcher.runner" in line and "--no_ssh" in line
    assert "--master_addr 127.0.0.1 --node_rank 0" in line
    start_on(host, tmp_path, config, "--master-addr", "10.0.0.1")
    assert "--master_addr 10.0.0.1" in " ".join(started[1])


def test_without_ssh_no_host_is_asked_for_its_address(
    started: list[list[str]], hosts: str, config: str
) -> None:
    without = ["--hostfile", hosts, "--no-ssh", "--node-rank", "1"]
    launch(parse([*without, config]))
    launch(parse([*without, "--master-addr", "10.0.0.1", config]))
    addresses = [command[command.index("--master_addr") + 1] for command in started]
    assert addresses == ["node-a", "10.0.0.1"]


def test_one_other_host_that_does_not_answer(
    started: list[list[str]], tmp_path: Path, config: str
) -> None:
    with pytest.raises(W2SError, match="no answer from gone over ssh"):
        start_on("gone", tmp_path, config)
    assert not started


def test_deepspeed_starts_nothing_here_for_another_host(
    started: list[list[str]], tmp_path: Path, config: str
) -> None:
    start_on("gpu-node-7", tmp_path, config)
    subprocess.run(started[0], check=True, cwd=tmp_path)
    assert "-w gpu-node-7" in (tmp_path / "pdsh.log").read_text()


def test_bad_input_before_anything_starts(
    hosts: str, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_job(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(module, "run_job", run_job)
    for args, message in (
        (["--processes", "5", config], "batch_size is 32, which does not split over 5 processes"),
        (["--hostfile", hosts, config, "--student_train.batch_size", "12"], "over 8 processes"),
        (["--no-ssh", config], "--no-ssh needs --hostfile and --node-rank"),
        (["--hostfile", hosts, "--node-rank", "2", config], "--node-rank is 2, the hostfile has 2"),
        ([config, "--student_train.zero_stag", "3"], "did you mean 'student_train.zero_stage'"),
    ):
        with pytest.raises(W2SError, match=message):
            launch(parse(args))
    assert main(["launch", "--hostfile", "nowhere", config]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert launch(parse(["--hostfile", hosts, "--dry-run", config])) == 0
    assert "w2s_fast.cli.hosts" in capsys.readouterr().out


def test_a_port_that_is_taken(config: str) -> None:
    with socket.socket() as s:
        s.bind(("", 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(W2SError, match=f"port {port} is in use .*choose another with"):
            launch(parse(["--processes", "2", "--master-port", str(port), config]))
    check_port(free_port())
