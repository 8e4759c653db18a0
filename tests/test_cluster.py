"""Two hosts on one machine: network namespaces with addresses of their own, joined by a cable.

The documented launch lines run there for real, with ZeRO-3 over gloo. Then a rank is killed, a rank
is stopped, the cable is pulled: the job must end in bounded time and name who was lost, leave no
process behind, and the same command must end in the results of a run that nothing happened to.
Needs root and iproute2; the ssh test also pdsh and an ssh server.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from w2s_fast.world import free_port

pytest.importorskip("deepspeed")
ROOT = Path(__file__).parents[1]
NODES = {"w2s-node-a": "10.77.0.1", "w2s-node-b": "10.77.0.2"}
TIMEOUT_S = 10
pytestmark = [pytest.mark.slow, pytest.mark.dist, pytest.mark.timeout(700)]
if os.geteuid() != 0 or shutil.which("ip") is None:
    pytestmark.append(pytest.mark.skip(reason="network namespaces need root and iproute2"))


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


@pytest.fixture(scope="module")
def cable() -> Iterator[Callable[[str], None]]:
    """Make the hosts; the value turns their cable ``up`` or ``down``."""
    (a, first), (b, second) = NODES.items()
    for name in NODES:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    ip("link", "add", "w2s0", "netns", a, "type", "veth", "peer", "name", "w2s0", "netns", b)
    for name, address in ((a, first), (b, second)):
        ip("-n", name, "address", "add", f"{address}/24", "dev", "w2s0")
        ip("-n", name, "link", "set", "w2s0", "up")
    yield lambda state: ip("-n", b, "link", "set", "w2s0", state)
    for name in NODES:
        ip("netns", "del", name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all hosts share: hostfile, data and configuration."""
    path = tmp_path_factory.mktemp("cluster")
    (path / "hosts").write_text("".join(f"{address} slots=1\n" for address in NODES.values()))
    g = np.random.default_rng(0)
    words = np.array(["good", "fine", "great", "bad", "poor", "awful", "a", "the", "film", "book"])
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
student_train: {{lr: 1.0e-3, epochs: 12, batch_size: 16, zero: 3, checkpoint_every: 10,
  timeout_s: {TIMEOUT_S}}}
losses: [logconf]
seeds: [0]
"""
    )
    _checkpoint(path / "student", words.tolist())
    return path


def _checkpoint(path: Path, words: list[str]) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *words])}
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


def documented_line() -> str:
    """The launch line of docs/distributed.md for hosts without ssh."""
    text = (ROOT / "docs" / "distributed.md").read_text()
    (line,) = re.findall(r"^w2s-fast launch .*--no-ssh.*--node-rank 0.*$", text, re.M)
    assert NODES["w2s-node-a"] in line
    return line


class Job:
    """``w2s-fast launch`` on both hosts."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder, self.out, self.port = folder, out, free_port()
        self.logs = [out.with_suffix(f".{i}.log") for i in range(2)]
        self.launchers = [self._start(i, name) for i, name in enumerate(NODES)]

    def _start(self, number: int, name: str) -> subprocess.Popen[bytes]:
        line = documented_line().replace("--node-rank 0", f"--node-rank {number}")
        line = line.replace("w2s-fast", f"{sys.executable} -m w2s_fast")
        line = line.replace("launch", f"launch --master-port {self.port}")
        inside = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c"]
        script = f"hostname {name}; exec {line} --out {self.out} --threads 1"
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.logs[number].open("wb") as log:
            return subprocess.Popen(
                [*inside, script], env=env, stdout=log, stderr=log, cwd=self.folder
            )

    def processes(self) -> list[tuple[int, int]]:
        """(rank, pid) of the workers that live."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                env = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if "-m w2s_fast run" in line and f"MASTER_PORT={self.port}".encode() in env:
                rank = next(v for v in env if v.startswith(b"RANK="))
                found.append((int(rank[5:]), int(entry.name)))
        return sorted(found)

    def until_checkpoint(self) -> None:
        """Wait for a checkpoint of the student."""
        end = time.monotonic() + 120
        while not list(self.out.glob("cache/.student-*/checkpoint/step-*")):
            assert time.monotonic() < end and self.alive(), self.output()
            time.sleep(0.05)

    def alive(self) -> bool:
        return any(p.poll() is None for p in self.launchers)

    def wait(self, timeout: float = 150) -> list[int]:
        """Exit codes of both launchers."""
        try:
            return [p.wait(timeout) for p in self.launchers]
        except subprocess.TimeoutExpired as e:
            raise AssertionError(self.output()) from e
        finally:
            for p in self.launchers:
                p.kill()

    def output(self) -> str:
        return "\n----\n".join(log.read_text()[-6000:] for log in self.logs)


def predictions(out: Path) -> dict[str, bytes]:
    """Every stage's probabilities, as bytes."""
    found = {}
    for file in sorted(out.glob("cache/*/**/*.parquet")):
        stage = file.relative_to(out / "cache").parts[0].partition("-")[0]
        table = pq.read_table(file)
        found[f"{stage}/{file.name}"] = np.array(table["probs"].to_pylist(), np.float32).tobytes()
    return found


def straight_run(folder: Path) -> dict[str, bytes]:
    job = Job(folder, folder / "undisturbed")
    assert job.wait() == [0, 0], job.output()
    found = predictions(job.out)
    assert {name.partition("/")[0] for name in found} == {"weak", "labels", "student", "ceiling"}
    return found


# What happens, and how soon the job must be over.
FAULTS = {"killed": 10.0, "stopped": TIMEOUT_S + 10.0, "cut": TIMEOUT_S + 10.0}


def test_faults(cable: Callable[[str], None], folder: Path) -> None:
    """One test, as it has the hosts' names and addresses to itself."""
    undisturbed = straight_run(folder)
    for fault, most in FAULTS.items():
        job = Job(folder, folder / fault)
        job.until_checkpoint()
        pid = dict(job.processes())[1]
        begin = time.monotonic()
        if fault == "cut":
            cable("down")
        else:
            os.kill(pid, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        try:
            codes = job.wait(60)
            seconds = time.monotonic() - begin
        finally:
            cable("up")
        print(f"{fault}: over after {seconds:.1f} s, exit codes {codes}")
        assert all(codes) and seconds < most, (fault, codes, seconds, job.output())
        assert "lost rank 1 on w2s-node-b" in job.output(), (fault, job.output())
        assert not job.processes(), f"{fault}: processes are left behind"
        again = Job(folder, folder / fault)
        assert again.wait() == [0, 0], (fault, again.output())
        assert predictions(again.out) == undisturbed, fault
