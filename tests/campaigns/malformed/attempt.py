"""One command with a malformed input: run it, and judge what it printed and left."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.paths import PYTHONPATH

CPU_SECONDS = 20  # of a processor, imports included: the machine may have other work
PATIENCE_S = 240  # after which a command hangs
LONGEST = 2100  # characters of an error line that can be read
_ERROR = "w2s-fast: error: "
SECRET = "sk-campaign-0123456789abcdef"


@dataclass
class Attempt:
    """A command with one malformed input.

    Attributes:
        args: Arguments of ``w2s-fast``.
        names: What is wrong, as the error line may name it; one of them is enough.
        may_pass: The input may be valid after all; the results then have to be complete.
        env: Environment variables that differ.
        computes: Stages that have to run before the input is seen.
        fresh: The command needs a process of its own.
        expected: The ``runs`` of results.json if the command finishes; None: any whole ones.
    """

    args: list[str]
    names: tuple[str, ...]
    may_pass: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    computes: tuple[str, ...] = ()
    fresh: bool = False
    expected: Any = None


@dataclass
class Printed:
    """The end of a command."""

    code: int
    out: str
    err: str


class Late(BaseException):
    """The command is not over in time."""


def problem(attempt: Attempt, cwd: Path, *, fresh: bool = False) -> str:
    """Run a command in an empty folder; return what is wrong with how it ended, "" if nothing."""
    before = set(_stages(cwd))
    start = _used()
    try:
        run = in_process if fresh or attempt.fresh else in_this_process
        printed = run(attempt.args, cwd, attempt.env)
    except (Late, subprocess.TimeoutExpired):
        return f"not over after {PATIENCE_S} s"
    seconds = _used() - start
    if SECRET in printed.out + printed.err:
        return "the key was printed"
    if printed.code == 0:
        return _wrong_success(attempt, cwd, printed)
    lines = printed.err.splitlines()
    if len(lines) != 1 or not lines[0].startswith(_ERROR):
        return f"exit code {printed.code}, not one line: {_end(printed.err)}"
    if len(lines[0]) > LONGEST:
        return f"a line of {len(lines[0])} characters: {lines[0][:200]}"
    if not any(name in lines[0] for name in attempt.names):
        return f"none of {attempt.names} in: {lines[0]}"
    computed = [s for s in _stages(cwd) if s not in before and _kind(s) not in attempt.computes]
    if computed:
        return f"{computed} ran before: {lines[0]}"
    return "" if seconds < CPU_SECONDS else f"took {seconds:.0f} s of a processor"


def in_this_process(args: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Printed:
    """Call ``w2s-fast`` as a function, in ``cwd``."""
    from w2s_fast.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with _state(cwd, env), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(args))
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        except Exception:
            traceback.print_exc()
            code = 1
    return Printed(code, out.getvalue(), err.getvalue())


def in_process(args: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Printed:
    """Start ``python -m w2s_fast`` in ``cwd``."""
    done = subprocess.run(
        [sys.executable, "-m", "w2s_fast", *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Printed(
        done.returncode, *(t.decode(errors="replace") for t in (done.stdout, done.stderr))
    )


@contextlib.contextmanager
def _state(cwd: Path, env: Mapping[str, str]) -> Iterator[None]:
    """Enter the folder with these variables, and raise ``Late`` inside if it hangs."""

    def late(*_: Any) -> None:
        raise Late

    folder, variables, handler = Path.cwd(), dict(os.environ), signal.signal(signal.SIGALRM, late)
    os.chdir(cwd)
    os.environ.update(env)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, 1)  # again where something swallows it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)


def _used() -> float:
    """Return the processor time of this process and of its children that have ended."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def _wrong_success(attempt: Attempt, cwd: Path, printed: Printed) -> str:
    if not attempt.may_pass:
        return f"accepted: {_end(printed.out)}"
    if "Traceback" in printed.err:
        return f"a traceback: {_end(printed.err)}"
    if "run" not in attempt.args:
        return ""
    path = next(cwd.glob("**/results.json"), None)
    if path is None or "--print-config" in attempt.args:
        return "" if "--print-config" in attempt.args else "exit code 0 without results"
    rows = json.loads(path.read_bytes())["runs"]
    if attempt.expected not in (None, rows):
        return "other results than those of an undisturbed run"
    scores = [row[model] for row in rows for model in ("weak", "student", "ceiling")]
    good = scores and all(isinstance(s, float) and 0 <= s <= 1 for s in scores)
    return "" if good else f"accepted, with scores {scores}"


def _stages(cwd: Path) -> list[str]:
    """Return the stages that were begun, finished or not."""
    folders = [p for p in cwd.glob("**/cache/*") if p.is_dir()]
    return sorted(p.name for p in folders if re.search("-[0-9a-f]{12}$", p.name))


def _kind(stage: str) -> str:
    return stage.lstrip(".").rpartition("-")[0]


def _end(text: str) -> str:
    return f"... {text[-500:]}" if len(text) > 500 else text
