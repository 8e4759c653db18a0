"""Forks the ranks of tests from a process that has imported what all of them import.

Importing takes seconds of a core, in every rank of every launch; a fork takes milliseconds. A rank
starts with the environment, arguments and output that its test gives it, runs the test's file (or
a module) as its program, and ends without the interpreter's shutdown. Nothing but imports happens
here: no thread may run when a process is forked.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

READY = b"+"  # sent once, after the imports
# Not pyarrow, whose allocator starts a thread.
IMPORTS = (
    "numpy", "pytest", "torch", "torch.distributed", "w2s_fast.cli.main", "w2s_fast.training",
    "w2s_fast.losses", "w2s_fast.pipeline", "w2s_fast.pipeline.jobs",
    "w2s_fast.pipeline.stages.registry", "w2s_fast.models", "w2s_fast.pipeline.experiment",
    "matplotlib.figure", "jsonargparse", "yaml", "scipy.stats", "rich.progress",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2", "safetensors.torch", "w2s_fast._core",
    "torch._inductor.compile_fx",  # of DeepSpeed's engine
    "deepspeed.runtime.zero.stage3",
)  # fmt: skip


def main(control: int) -> None:
    """Serve requests of ``ranks.py`` on this socket until it is closed."""
    for name in IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(Exception):  # W2SError: it is not installed
        importlib.import_module("w2s_fast.training.deepspeed.setup").load_deepspeed()
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads run after the imports; a fork would copy their locks"
    # A collection in a rank would walk what was imported, and copy every page of it.
    gc.collect()
    gc.freeze()
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    with socket.socket(fileno=control) as asked:
        asked.sendall(READY)
        _serve(asked, woken)


def _serve(asked: socket.socket, woken: int) -> None:
    ends: dict[int, int] = {}  # where the exit code of a rank is wanted
    while True:
        ready, _, _ = select.select([asked, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(ends)
        if asked in ready:
            text, given, _, _ = socket.recv_fds(asked, 1 << 20, 2)
            if not text:
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                asked.close()
                for end in (woken, given[1], *ends.values()):
                    os.close(end)
                _be(json.loads(text), given[0])
            os.close(given[0])
            ends[pid] = given[1]
            asked.sendall(pid.to_bytes(4, "little"))


def _reap(ends: dict[int, int]) -> None:
    while ends:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        end = ends.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(end, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(end)


def _be(job: dict[str, Any], out: int) -> None:
    """Be the program of the request; does not return."""
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.argv = [job["file"], *job["args"]]
    random.seed()
    sys.modules["numpy"].random.seed()
    code: Any = 1
    try:
        if job["file"].endswith(".py"):
            sys.path.insert(0, str(Path(job["file"]).parent))
            runpy.run_path(job["file"], run_name="__main__")
        else:
            runpy.run_module(job["file"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as e:
        code = 0 if e.code is None else e.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
