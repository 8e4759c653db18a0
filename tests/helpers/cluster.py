"""Two hosts on one machine: network namespaces with addresses of their own, joined by a cable.

Each has its own host name, and where there is an ssh server, one that lets this test in.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from helpers.paths import ROOT

HOSTS = {"node-a": "10.77.0.1", "node-b": "10.77.0.2"}
TIMEOUT_S = 10  # of the jobs: seconds of silence after which a process counts as lost
WORDS = ("good", "fine", "great", "bad", "poor", "awful", "a", "the", "film", "book")
_NAMES = Path("/etc/netns")  # a space's own files of /etc
# Slurm's commands, as far as a batch script of two tasks sees them.
_SLURM = {
    "sbatch": 'SLURM_JOB_NODELIST=both SLURM_JOB_ID=1 SLURM_CPUS_PER_TASK=1 bash "$@"',
    "scontrol": f"printf '%s\\n' {' '.join(HOSTS)}",
    "srun": """shift
export SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_LOCALID=0
there="cd $PWD; $(export -p | grep -E 'SLURM_|MASTER_|PYTHONPATH|PATH=' | tr '\\n' ';')"
ssh node-b "$there SLURM_PROCID=1 $*" &
env SLURM_PROCID=0 "$@" && wait $!""",
}
_SSHD = "/usr/sbin/sshd"


def without() -> str:
    """What this machine lacks for two hosts; empty if nothing."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and iproute2"
    return ""


def without_ssh() -> str:
    """What this machine lacks for ssh between them; empty if nothing."""
    lacks = [name for name in ("ssh", "ssh-keygen", "pdsh", _SSHD) if shutil.which(name) is None]
    return f"needs {', '.join(lacks)}" if lacks else ""


class Cluster:
    """The hosts. ``tools`` goes in front of PATH: there, ssh knows the keys of this cluster."""

    def __init__(self, folder: Path) -> None:
        self.tools = folder / "bin"
        # Names of its own: tests may run at the same time. Addresses are each cluster's own anyway.
        self._spaces = {host: f"w2s-{host}-{os.getpid()}" for host in HOSTS}
        self._servers: list[subprocess.Popen[bytes]] = []
        self._folder = folder

    @contextmanager
    def up(self) -> Iterator[Cluster]:
        """Make the hosts; gone after the block."""
        try:
            self._join()
            if not without_ssh():
                self._serve()
            yield self
        finally:
            for server in self._servers:
                server.terminate()
                server.wait()
            for space in self._spaces.values():
                subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
                shutil.rmtree(_NAMES / space, ignore_errors=True)

    def cable(self, state: str) -> None:
        """Turn the cable between the hosts ``up`` or ``down``."""
        _ip("-n", self._spaces["node-b"], "link", "set", "w2s0", state)

    def start(
        self,
        host: str,
        line: str,
        log: Path | None = None,
        pass_fds: Sequence[int] = (),
        **env: str,
    ) -> subprocess.Popen[bytes]:
        """Begin a shell line on a host, in the folder; it keeps the open files ``pass_fds``."""
        inside = ["ip", "netns", "exec", self._spaces[host], "unshare", "--uts", "sh", "-c"]
        path = os.pathsep.join([str(self.tools), str(Path(sys.executable).parent), os.defpath])
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": path} | env
        command = [*inside, f"hostname {host}; exec {line}"]
        with Path(os.devnull if log is None else log).open("wb") as out:
            return subprocess.Popen(
                command, env=env, stdout=out, stderr=out, cwd=self._folder, pass_fds=pass_fds
            )

    def _join(self) -> None:
        (a, b), (first, second) = self._spaces.values(), HOSTS.values()
        for space in (a, b):
            (_NAMES / space).mkdir(parents=True)
            lines = [f"{address} {host}\n" for host, address in HOSTS.items()]
            (_NAMES / space / "hosts").write_text("".join(["127.0.0.1 localhost\n", *lines]))
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
        _ip("link", "add", "w2s0", "netns", a, "type", "veth", "peer", "name", "w2s0", "netns", b)
        for space, address in ((a, first), (b, second)):
            _ip("-n", space, "address", "add", f"{address}/24", "dev", "w2s0")
            _ip("-n", space, "link", "set", "w2s0", "up")

    def _serve(self) -> None:
        """An ssh server on each host, and an ``ssh`` that has the key to it."""
        keys = self._folder / "ssh"
        keys.mkdir(mode=0o700)
        for name in ("user", *HOSTS):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name))
        Path("/run/sshd").mkdir(exist_ok=True)  # the server's own condition
        for host in HOSTS:
            config = keys / f"{host}.conf"
            config.write_text(
                f"HostKey {keys / host}\nPidFile none\nUsePAM no\nStrictModes no\n"
                f"AuthorizedKeysFile {keys / 'user.pub'}\nPasswordAuthentication no\n"
            )
            self._servers.append(self.start(host, f"{_SSHD} -D -f {config}"))
        config = keys / "config"
        config.write_text(
            f"IdentityFile {keys / 'user'}\nIdentitiesOnly yes\nStrictHostKeyChecking no\n"
            "UserKnownHostsFile /dev/null\nLogLevel ERROR\n"
        )
        self.tools.mkdir()
        scripts = _SLURM | {"ssh": f'exec {shutil.which("ssh")} -F {config} "$@"'}
        for name, script in scripts.items():
            (self.tools / name).write_text(f"#!/bin/sh\n{script}\n")
            (self.tools / name).chmod(0o755)


class Job:
    """Lines that run on hosts, all with results in ``out``.

    Args:
        cluster: The hosts.
        out: Folder of results; logs are beside it.
        lines: Host and shell line of each process that a user would start.
    """

    def __init__(self, cluster: Cluster, out: Path, lines: Sequence[tuple[str, str]]) -> None:
        self.out = out
        self.logs = [out.with_name(f"{out.name}.{i}.log") for i in range(len(lines))]
        self.launchers = [
            cluster.start(host, f"{line} --out {shlex.quote(str(out))} --threads 1", log)
            for (host, line), log in zip(lines, self.logs, strict=True)
        ]

    def processes(self) -> dict[int, int]:
        """rank -> pid of the workers that live."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
                env = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            rank = [v[5:] for v in env if v.startswith(b"RANK=")]
            if b"w2s_fast" in line and str(self.out).encode() in line and rank:
                found[int(rank[0])] = int(entry.name)
        return found

    def until_checkpoint(self) -> None:
        """Wait for a checkpoint of the student."""
        end = time.monotonic() + 240
        while not list(self.out.glob("cache/.student-*/checkpoint/step-*")):
            alive = any(p.poll() is None for p in self.launchers)
            assert time.monotonic() < end and alive, self.output()
            time.sleep(0.05)

    def wait(self, timeout: float = 300) -> list[int]:
        """Exit codes of all lines."""
        try:
            return [p.wait(timeout) for p in self.launchers]
        except subprocess.TimeoutExpired as e:
            raise AssertionError(self.output()) from e
        finally:
            for p in self.launchers:
                p.kill()

    def succeed(self) -> dict[str, bytes]:
        """Wait, and return every stage's probabilities, as bytes."""
        codes = self.wait()
        assert not any(codes), (codes, self.output())
        found = {}
        for file in sorted(self.out.glob("cache/*/**/*.parquet")):
            stage = file.relative_to(self.out / "cache").parts[0].partition("-")[0]
            table = pq.read_table(file)
            if "probs" in table.column_names:  # outcomes have none
                probs = table["probs"].to_pylist()
                found[f"{stage}/{file.name}"] = np.array(probs, np.float32).tobytes()
        stages = {name.partition("/")[0] for name in found}
        assert stages == {"weak", "labels", "student", "ceiling"}, self.output()
        return found

    def output(self) -> str:
        """The end of everyone's log."""
        return "\n----\n".join(log.read_text()[-6000:] for log in self.logs)


def fill(path: Path) -> None:
    """What all hosts share: hostfile, data, a small model and the configuration."""
    (path / "hosts").write_text("".join(f"{host} slots=1\n" for host in HOSTS))
    g = np.random.default_rng(0)
    words = np.array(WORDS)
    lines = ["text,label"]
    for _ in range(900):
        label = int(g.integers(2))
        mood = words[g.integers(0, 3) + 3 * (1 - label)]
        lines.append(" ".join([*words[g.integers(6, 10, g.integers(2, 12))], mood]) + f",{label}")
    (path / "data.csv").write_text("\n".join(lines) + "\n")
    (path / "run.yaml").write_text(
        f"""
task: {{name: local, path: {path}/data.csv, text: text, label: label,
  n_weak: 100, n_transfer: 400, n_test: 200}}
weak: {{source: bow}}
weak_train: {{lr: 0.1, epochs: 2, timeout_s: {TIMEOUT_S}}}
student: {{source: {path}/student}}
student_train: {{lr: 1.0e-3, epochs: 6, batch_size: 16, zero_stage: 3, checkpoint_every: 10,
  timeout_s: {TIMEOUT_S}}}
losses: [logconf]
seeds: [0]
"""
    )
    save_model(path / "student")


def save_model(path: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=48,
    )  # fmt: skip
    LlamaModel(config).save_pretrained(path)


def _ip(*args: str) -> None:
    _run("ip", *args)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
