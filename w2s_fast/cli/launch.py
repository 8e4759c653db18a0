"""``w2s-fast launch``: start ``w2s-fast run`` on the accelerators of one or several hosts.

DeepSpeed's launcher starts the processes; this module builds its command, checks the hosts first,
and ends the job if a host disappears.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from w2s_fast.cli.hosts import check_hosts, exports, is_this_host, read_hosts
from w2s_fast.cli.job import run_job
from w2s_fast.cli.parse import (
    PRINT,
    asks_for_help,
    load_config,
    print_config,
    take_options,
    take_run_options,
)
from w2s_fast.distributed.heartbeat import EXIT_CODE
from w2s_fast.distributed.interpreter import module_command
from w2s_fast.distributed.world import DEFAULT_PORT
from w2s_fast.errors import W2SError, nearest
from w2s_fast.paths import PathText, expand_paths

USAGE = """usage: w2s-fast launch [options] CONFIG.yaml [--NAME VALUE ...] [--quiet]

Starts `w2s-fast run --config CONFIG.yaml --NAME VALUE ...` once per accelerator (or --processes).

  --hostfile FILE     one host per line: `name slots=8`; without it, this host alone
  --processes N       processes on each host (default: its accelerators, or the slots of its line)
  --master-addr A     address at which the other hosts reach the first one (default: what it says
                      over ssh; with --no-ssh its name in the hostfile)
  --master-port P     port on the first host (default 29500)
  --ssh-port P        ssh port of every host
  --no-ssh            start only this host's processes; run the same command on every host
  --node-rank I       line of this host in the hostfile, from 0; with --no-ssh
  --dry-run           print the command and stop

The same command continues a job that lost a process. torchrun, deepspeed and srun work as well:
  torchrun --nproc-per-node 8 -m w2s_fast run --config CONFIG.yaml
  deepspeed --hostfile hosts --module w2s_fast run --config CONFIG.yaml
"""
# With these, ssh notices a lost host after about 15 s; without them it waits for ever.
_KEEP_ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"


@dataclass(frozen=True)
class LaunchOptions:
    """The options of ``w2s-fast launch``."""

    config: PathText
    arguments: tuple[str, ...] = ()
    hostfile: PathText | None = None
    processes: int | None = None
    master_addr: str | None = None
    master_port: int = DEFAULT_PORT
    ssh_port: int | None = None
    no_ssh: bool = False
    node_rank: int | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        expand_paths(self, "--")


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code of the job."""
    if not args or asks_for_help(args):
        print(USAGE, end="")
        return 0 if args else 2
    options = parse(args)
    run_options, settings = take_run_options(options.arguments)
    if PRINT in run_options:
        print_config(load_config(settings, [options.config]), run_options[PRINT])
        return 0
    return launch(options)


def parse(args: Sequence[str]) -> LaunchOptions:
    """Parse the options before the configuration file; those after it belong to the run.

    Raises:
        W2SError: An option is unknown, lacks its value, or needs a number.
    """
    numbers, flags = ("processes", "master-port", "ssh-port", "node-rank"), ("no-ssh", "dry-run")
    values = (*numbers, "hostfile", "master-addr")
    own, rest = take_options(args, values, flags, only_leading=True)
    if rest and rest[0].startswith("-"):
        known = [f"--{name}" for name in (*values, *flags)]
        raise W2SError(f"unknown option {rest[0]!r}{nearest(rest[0], known)}")
    if not rest:
        raise W2SError("no configuration file; expected `w2s-fast launch [options] CONFIG.yaml`")
    fields: dict[str, Any] = {}
    for name, value in own.items():
        if name in numbers and not re.fullmatch("[0-9]{1,9}", value):
            raise W2SError(f"--{name} is {value!r}; expected a number")
        if name == "processes" and int(value) < 1:
            raise W2SError(f"--{name} is {value!r}; expected at least 1")
        if name.endswith("-port") and not 0 < int(value) < 1 << 16:
            raise W2SError(f"--{name} is {value!r}; expected 1 to 65535")
        parsed = True if name in flags else int(value) if name in numbers else value
        fields[name.replace("-", "_")] = parsed
    config, *arguments = rest
    return LaunchOptions(config, tuple(arguments), **fields)


def launch(options: LaunchOptions) -> int:
    """Check the input, start the job, wait for it, and return its exit code.

    Raises:
        W2SError: The configuration is invalid, a host does not answer, or the port is in use; no
            process has been started.
    """
    hosts = None if options.hostfile is None else read_hosts(options.hostfile)
    _check_options(options, hosts)
    options = _complete(options, hosts)
    command = build_command(options, hosts)
    if options.dry_run:
        print(shlex.join(command))
        return 0
    over_ssh = _uses_ssh(options, hosts)
    if over_ssh:
        check_hosts(list(hosts or ()), options.ssh_port)
    first = hosts is None or options.node_rank in (None, 0)
    if first and not over_ssh:
        check_port(options.master_port)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "environment"
        exported.write_bytes(os.fsencode("".join(f"{k}={v}\n" for k, v in exports().items())))
        env = os.environ | {
            "DS_ENV_FILE": str(exported),
            "PDSH_SSH_ARGS_APPEND": f"{_KEEP_ALIVE} {os.environ.get('PDSH_SSH_ARGS_APPEND', '')}",
        }
        # Over ssh, the runner ends the processes of all hosts; on one host, it ends itself only.
        return job_exit_code(run_job(command, env, whole_group=not over_ssh))


def build_command(options: LaunchOptions, hosts: dict[str, int] | None) -> list[str]:
    """Return the command of DeepSpeed's launcher."""
    over_ssh = _uses_ssh(options, hosts)
    runner = "w2s_fast.cli.hosts" if over_ssh else "deepspeed.launcher.runner"
    command = [*module_command(runner), "--quiet", "--no_local_rank"]
    if hosts is not None:
        command += ["--hostfile", str(options.hostfile)]
    if options.processes is not None:
        command += ["--num_gpus", str(options.processes)]
    for name in ("master_addr", "ssh_port", "node_rank"):
        value = getattr(options, name)
        if value is not None:
            command += [f"--{name}", str(value)]
    command += ["--master_port", str(options.master_port)]
    if options.no_ssh:
        command.append("--no_ssh")
    if over_ssh:
        command.append("--force_multi")  # a single host of a hostfile may be another one too
    run = ["--config", options.config, *options.arguments]
    if over_ssh:
        run = [_quote_for_shell(word) for word in run]
    return [*command, "--module", "w2s_fast", "run", *run]


def _complete(options: LaunchOptions, hosts: dict[str, int] | None) -> LaunchOptions:
    """Return the options with which DeepSpeed uses ssh only where it has to.

    Without an address it asks the first host for one over ssh, also if that is this host or ssh is
    not to be used.
    """
    if hosts is None:
        return options
    first, *others = hosts
    # A port of ssh on this host may lead to another one, such as a container.
    if not others and options.ssh_port is None and is_this_host(first):
        options = replace(options, no_ssh=True, node_rank=0)
    if options.no_ssh and options.master_addr is None:
        address = first.rpartition("@")[2] if others else "127.0.0.1"
        options = replace(options, master_addr=address)
    return options


def _uses_ssh(options: LaunchOptions, hosts: dict[str, int] | None) -> bool:
    return hosts is not None and not options.no_ssh


def _quote_for_shell(word: str) -> str:
    """Quote a word for the shell of another host; DeepSpeed quotes only words with spaces."""
    return re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)


def job_exit_code(code: int) -> int:
    """Return the exit code of the job, 75 if it lost a process, from that of the launcher.

    DeepSpeed's launcher returns 256 - 9 for a process that signal 9 killed, and 255 for a host
    whose ssh connection broke.
    """
    return EXIT_CODE if code >= 256 - signal.NSIG else code


def check_port(port: int) -> None:
    """Check that the port on which rank 0 will listen is free.

    Raises:
        W2SError: It is in use.
    """
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("", port))
        except OSError as e:
            raise W2SError(
                f"port {port} is in use ({e.strerror}); choose another with --master-port"
            ) from e


def _check_options(options: LaunchOptions, hosts: dict[str, int] | None) -> None:
    from w2s_fast.training.deepspeed.setup import load_deepspeed

    if options.no_ssh and (hosts is None or options.node_rank is None):
        raise W2SError("--no-ssh needs --hostfile and --node-rank")
    if options.node_rank is not None and hosts is not None and options.node_rank >= len(hosts):
        raise W2SError(f"--node-rank is {options.node_rank}, the hostfile has {len(hosts)} hosts")
    cfg = load_config(take_run_options(options.arguments)[1], [options.config])
    load_deepspeed()
    if hosts is not None:
        size = sum(options.processes or slots for slots in hosts.values())
    else:
        size = options.processes or _accelerators()
    for train in (cfg.weak_train, cfg.student_train):
        train.batch_shape(size)


def _accelerators() -> int:
    import torch

    return max(1, torch.cuda.device_count())
