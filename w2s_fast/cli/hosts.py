"""The hosts of a launched job: their file, whether they answer, and what runs on them.

DeepSpeed's runner starts a job over ssh with pdsh. ``python -m w2s_fast.cli.hosts`` is that runner
with another ``PDSHRunner``: the folder and the environment are quoted for the shell of the host,
only named variables travel, and ending the job ends no other job of the same user.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.files import read_text
from w2s_fast.paths import user_path

_CONNECT_TIMEOUT_S = 5
# A name, an IPv4 or an IPv6 address, perhaps of a user. ssh takes a leading "-" for an option, and
# pdsh expands commas and brackets.
_HOST = re.compile(r"(?:\w[\w.-]*@)?(?:\w[\w.-]*|[0-9a-fA-F]*:[0-9a-fA-F:.]+)", re.ASCII)
# Environment variables that are passed on to every host. All that travels is visible in the process
# lists of the hosts, so a family of names may hold settings of network or threads only.
_EXPORTED = {
    "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONHASHSEED", "W2S_BACKEND", "W2S_CPU_CAPABILITY",
    "W2S_THREADS", "DS_ACCELERATOR", "DS_SKIP_CUDA_CHECK", "HF_HOME", "HF_HUB_CACHE",
    "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT",
    "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM", "CUDA_HOME", "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING", "TORCH_HOME", "TORCH_EXTENSIONS_DIR", "TORCH_CUDA_ARCH_LIST",
    "TORCH_LOGS", "TORCH_SHOW_CPP_STACKTRACES", "TORCH_CPP_LOG_LEVEL", "TORCH_DISTRIBUTED_DEBUG",
    "TORCHINDUCTOR_CACHE_DIR", "TORCHDYNAMO_DISABLE", "TRITON_CACHE_DIR", "TRITON_INTERPRET",
}  # fmt: skip
_FAMILIES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "UCX_", "OMP_")
_USER_IN_ADDRESS = re.compile(r"://\S*@")  # what stands before the @ may be a password
_OF_ACCELERATORS = ("PATH", "LD_LIBRARY_PATH")  # exported where DeepSpeed's accelerator needs them


def exports() -> dict[str, str]:
    """Return the variables that are passed on to every host."""
    return {k: v for k, v in os.environ.items() if _travels(k, v) and "\n" not in v}


def _travels(name: str, value: str) -> bool:
    named = name in _EXPORTED or name.startswith(_FAMILIES)
    return named and not _USER_IN_ADDRESS.search(value)


def read_hosts(path: str) -> dict[str, int]:
    """Read a hostfile, and return the slots of each host.

    Raises:
        W2SError: The file cannot be read, or a line is not ``name slots=N``.
    """
    try:
        lines = read_text(user_path(path, "--hostfile")).splitlines()
    except OSError as e:
        raise W2SError(f"cannot read hostfile {path!r}: {e.strerror}") from e
    except UnicodeDecodeError:
        raise W2SError(f"hostfile {path!r} is not UTF-8; save it as plain text") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"(\S+)\s+slots=([0-9]{1,6})", text)
        if match is None or int(match[2]) < 1:
            raise W2SError(f"{path}:{number}: {text!r}; expected `name slots=8`")
        if not _HOST.fullmatch(match[1]):
            raise W2SError(
                f"{path}:{number}: {match[1]!r} is not the name of a host; expected letters, "
                "digits, dots and dashes, not a dash first"
            )
        if match[1] in hosts:
            raise W2SError(f"{path}:{number}: host {match[1]!r} appears twice")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise W2SError(f"hostfile {path!r} names no host; expected lines `name slots=8`")
    return hosts


def is_this_host(name: str) -> bool:
    """Tell whether a line of a hostfile names this host, and no user of it."""
    own = socket.gethostname().lower()
    names = ("localhost", "127.0.0.1", "::1", own, own.partition(".")[0])
    return name.lower() in names or name.lower() == socket.getfqdn().lower()


def check_hosts(hosts: Sequence[str], ssh_port: int | None) -> None:
    """Check that every host answers over ssh without a password.

    Raises:
        W2SError: Some hosts do not; the message names them.
    """
    for tool in ("pdsh", "ssh"):
        if shutil.which(tool) is None:
            raise W2SError(
                f"{tool} is not installed, which starts processes on other hosts; install it, or "
                "run this command with --no-ssh --node-rank I on every host"
            )
    port = [] if ssh_port is None else ["-p", str(ssh_port)]
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_TIMEOUT_S}"]

    def answers(host: str) -> bool:
        command = ["ssh", *options, *port, "--", host, "true"]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.returncode == 0

    with ThreadPoolExecutor(32) as pool:
        silent = [h for h, ok in zip(hosts, pool.map(answers, hosts), strict=True) if not ok]
    if silent:
        raise W2SError(
            f"no answer from {', '.join(silent)} over ssh within {_CONNECT_TIMEOUT_S} s; start it, "
            "correct the hostfile, or set up ssh keys"
        )


def main() -> None:
    """Run DeepSpeed's runner with ``Runner`` in the place of its own."""
    from deepspeed.launcher import runner

    runner.PDSHRunner = runner_class()
    runner.main()


def runner_class() -> type[Any]:
    """Return the class that makes the commands of one job, to start and to end it."""
    from deepspeed.launcher.multinode_runner import PDSHRunner

    class Runner(PDSHRunner):
        def add_export(self, key: str, var: str) -> None:
            """Export a named variable; DeepSpeed would let a shell expand its value."""
            key = key.strip()
            # DeepSpeed puts the working folder in front of its copy of PYTHONPATH.
            value = os.environ.get(key) if key == "PYTHONPATH" else var.strip()
            if value and (_travels(key, value) or key in _OF_ACCELERATORS):
                self.exports[key] = shlex.quote(value)

        def get_cmd(
            self, environment: dict[str, str], active_resources: dict[str, Any]
        ) -> tuple[list[str], list[str], dict[str, str]]:
            """Return the commands that start and end the job, and the environment of both."""
            command, _, environment = super().get_cmd(environment, active_resources)
            at = command.index(sys.executable)
            # -X takes any name: it marks the processes of this job on every host.
            mark = f"w2s_job={secrets.token_hex(16)}"
            folder = f"cd -- {shlex.quote(os.path.abspath('.'))};"
            python = [shlex.quote(sys.executable), "-X", mark]
            start = [*command[: at - 1], folder, *python, *command[at + 1 :]]
            # In brackets, so that the pattern does not match the shell that runs pkill.
            end = [*command[: at - 2], f"pkill -TERM -f -- '[w]{mark[1:]}'"]
            return start, end, environment

    return Runner


if __name__ == "__main__":
    main()
