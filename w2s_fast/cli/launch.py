"""``w2s-fast launch``: start ``w2s-fast run`` on the accelerators of one host, or of many.

The work is done by DeepSpeed's own launcher; this builds its command, looks at the hosts first, and
makes sure that a host which disappears ends the job.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from w2s_fast.distributed.heartbeat import EXIT_CODE
from w2s_fast.distributed.world import DEFAULT_PORT
from w2s_fast.errors import W2SError, nearest

USAGE = """usage: w2s-fast launch [options] CONFIG.yaml [--NAME VALUE ...]

Starts `w2s-fast run --config CONFIG.yaml --NAME VALUE ...` once per accelerator (or --processes).

  --hostfile FILE     one host a line: `name slots=8`; without it, this host alone
  --processes N       processes on each host (default: its accelerators, or the slots of its line)
  --master-addr A     address of the first host, as the others reach it
  --master-port P     port on it (default 29500)
  --ssh-port P        of every host
  --no-ssh            start only this host's processes; run the same command on every host
  --node-rank I       which line of the hostfile this host is, from 0; with --no-ssh
  --dry-run           print the command that would run

The same command continues a job that was lost. torchrun, deepspeed and srun work as well:
  torchrun --nproc-per-node 8 -m w2s_fast run --config CONFIG.yaml
  deepspeed --hostfile hosts --module w2s_fast run --config CONFIG.yaml
"""
# ssh notices a host that is gone after about 15 s; without this it waits for ever.
_KEEP_ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"
_REACH_S = 5
# What a process needs of this one's environment, on every host.
_EXPORTED = ("W2S_", "DS_", "HF_", "OMP_", "NCCL_", "GLOO_", "CUDA_", "TORCH", "TRITON_")


@dataclass(frozen=True)
class Launch:
    """The options of ``w2s-fast launch``."""

    config: str
    arguments: tuple[str, ...] = ()
    hostfile: str | None = None
    processes: int | None = None
    master_addr: str | None = None
    master_port: int = DEFAULT_PORT
    ssh_port: int | None = None
    no_ssh: bool = False
    node_rank: int | None = None
    dry_run: bool = False


def parse(args: Sequence[str]) -> Launch:
    """Options before the configuration file, the run's own after it.

    Raises:
        W2SError: for an unknown option, or a value that is not a number where one is needed.
    """
    found: dict[str, object] = {}
    rest = list(args)
    flags, numbers = ("no_ssh", "dry_run"), ("processes", "master_port", "ssh_port", "node_rank")
    names = (*flags, *numbers, "hostfile", "master_addr")
    while rest and rest[0].startswith("-"):
        option, eq, value = rest.pop(0).partition("=")
        name = option.lstrip("-").replace("-", "_")
        if name not in names:
            known = [f"--{n.replace('_', '-')}" for n in names]
            raise W2SError(f"unknown option {option!r}{nearest(option, known)}")
        if name in flags:
            found[name] = True
            continue
        if not eq:
            if not rest:
                raise W2SError(f"{option} needs a value")
            value = rest.pop(0)
        if name in numbers:
            if not value.isdecimal():
                raise W2SError(f"{option} is {value!r}; expected a number")
            found[name] = int(value)
        else:
            found[name] = value
    if not rest:
        raise W2SError("no configuration file; expected `w2s-fast launch [options] CONFIG.yaml`")
    config, *arguments = rest
    return Launch(config, tuple(arguments), **found)  # type: ignore[arg-type]


def read_hosts(path: str) -> dict[str, int]:
    """Host -> slots of a hostfile.

    Raises:
        W2SError: if it cannot be read, or a line is not ``name slots=N``.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as e:
        raise W2SError(f"cannot read hostfile {path!r}: {e.strerror}") from e
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"(\S+)\s+slots=(\d+)", text)
        if match is None or int(match[2]) < 1:
            raise W2SError(f"{path}:{number}: {text!r}; expected `name slots=8`")
        if match[1] in hosts:
            raise W2SError(f"{path}:{number}: host {match[1]!r} stands there twice")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise W2SError(f"hostfile {path!r} names no host; expected lines `name slots=8`")
    return hosts


def launch(options: Launch) -> int:
    """Check, start, wait; the exit code of the job.

    Raises:
        W2SError: before anything was started: for a bad configuration, hosts that do not answer,
            or a port that is taken.
    """
    hosts = None if options.hostfile is None else read_hosts(options.hostfile)
    _check(options, hosts)
    command = build(options, hosts)
    if options.dry_run:
        print(" ".join(command))
        return 0
    over_ssh = _over_ssh(options, hosts)
    if over_ssh:
        check_hosts(list(hosts or ()), options.ssh_port)
    first = hosts is None or options.node_rank in (None, 0)
    if first and not over_ssh:
        check_port(options.master_port)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "environment"
        exported.write_text("".join(f"{k}={v}\n" for k, v in _exports().items()))
        env = os.environ | {
            "DS_ENV_FILE": str(exported),
            "PDSH_SSH_ARGS_APPEND": f"{_KEEP_ALIVE} {os.environ.get('PDSH_SSH_ARGS_APPEND', '')}",
        }
        return job_code(_wait(subprocess.Popen(command, env=env)))


def build(options: Launch, hosts: dict[str, int] | None) -> list[str]:
    """The command of DeepSpeed's launcher."""
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--no_local_rank"]
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
    run = ["--config", options.config, *options.arguments]
    if _over_ssh(options, hosts):
        run = [_for_shell(word) for word in run]
    return [*command, "--module", "w2s_fast", "run", *run]


def _over_ssh(options: Launch, hosts: dict[str, int] | None) -> bool:
    return hosts is not None and len(hosts) > 1 and not options.no_ssh


def _for_shell(word: str) -> str:
    """A word for the shell of another host. DeepSpeed quotes those with spaces, and only those."""
    return re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)


def job_code(code: int) -> int:
    """Exit code of the job, by that of DeepSpeed's launcher: 75 if it lost a process.

    The launcher passes on 256 - 9 for a process that signal 9 killed, and 255 for a host whose ssh
    broke.
    """
    return EXIT_CODE if code >= 256 - signal.NSIG else code


def check_hosts(hosts: Sequence[str], ssh_port: int | None) -> None:
    """Every host must answer over ssh without a password.

    Raises:
        W2SError: naming those that do not.
    """
    if shutil.which("pdsh") is None:
        raise W2SError(
            "pdsh is not installed, which starts processes on other hosts; install it, or run "
            "this command with --no-ssh --node-rank I on every host"
        )
    port = [] if ssh_port is None else ["-p", str(ssh_port)]
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_REACH_S}"]

    def answers(host: str) -> bool:
        command = ["ssh", *options, *port, host, "true"]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.returncode == 0

    with ThreadPoolExecutor(32) as pool:
        lost = [h for h, good in zip(hosts, pool.map(answers, hosts), strict=True) if not good]
    if lost:
        raise W2SError(
            f"no answer from {', '.join(lost)} over ssh within {_REACH_S} s; start it, mend the "
            "hostfile, or set up ssh keys"
        )


def check_port(port: int) -> None:
    """The port that rank 0 will listen on must be free.

    Raises:
        W2SError: if it is taken.
    """
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("", port))
        except OSError as e:
            raise W2SError(
                f"port {port} is taken ({e.strerror}); choose another with --master-port"
            ) from e


def _check(options: Launch, hosts: dict[str, int] | None) -> None:
    from w2s_fast.cli.parse import load_config
    from w2s_fast.training.deepspeed.setup import load_deepspeed

    if options.no_ssh and (hosts is None or options.node_rank is None):
        raise W2SError("--no-ssh needs --hostfile and --node-rank")
    if options.node_rank is not None and hosts is not None and options.node_rank >= len(hosts):
        raise W2SError(f"--node-rank is {options.node_rank}, the hostfile has {len(hosts)} hosts")
    cfg = load_config(options.arguments, [options.config])
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


def _exports() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(_EXPORTED) and "\n" not in v}


def _wait(child: subprocess.Popen[bytes]) -> int:
    """The child's exit code; Ctrl-C and SIGTERM are passed on, nothing is left behind."""

    def stop(number: int, _frame: object) -> None:
        child.send_signal(number)

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
