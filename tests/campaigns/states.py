"""What finished and killed commands leave, and how a command ended that finds it changed."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from campaigns import program
from campaigns.damages import restore
from campaigns.recipes import Recipe, differences, snapshot
from w2s_fast.cli import main as cli

_LIMIT_S = 240
# recipe -> moments of kills, as in ``campaigns.program``; each leaves other files
KILLS = {
    "bags of words": ("student-:5", "part-00001.parquet.sha256:1"),
    "transformers": ("student-:5", "best-:4"),
    "debate": ("transcripts-:2", "transcripts-:7"),
    "generation": ("weak-:5", "part-00001.parquet.sha256:1"),
    "supervisors": ("generated_votes-:1", "posterior-:2"),
    "sweep": (),
    "two ranks": ("student-:5",),
}
_KINDS = (
    (r"checkpoint/step-\d+/state\.json", "record of a checkpoint"),
    (r"checkpoint/step-\d+/.*safetensors", "state of a checkpoint"),
    (r"checkpoint/\.step-\d+/", "unfinished checkpoint"),
    (r"checkpoint/best-", "best weights"),
    (r"checkpoint/\w+/part-", "part of a killed stage"),
    (r"\.sha256$", "checksum of a part"),
    (r"checkpoint/answers-", "answers of an endpoint"),
    (r"/\.[a-z_]+-[0-9a-f]{12}/", "other file of a killed stage"),
    (r"stage\.json$", "record of a stage"),
    (r"\.locks/|\.lock$", "lock"),
    (r"\.logs/", "log of a worker"),
    (r"/[a-z_]+-[0-9a-f]{12}/(\w+)/", r"\1 of a stage"),
    (r"/[a-z_]+-[0-9a-f]{12}/([\w.]+)$", r"\1 of a stage"),
    (r"results\.json$|sweep\.json$", "results"),
    (r"", "plot, page or table"),
)


def kind_of(name: str) -> str:
    """Return the kind of a file by its path in the folder of results."""
    pattern, kind = next((p, k) for p, k in _KINDS if re.search(p, name))
    found = re.search(pattern, name)
    assert found is not None
    return found.expand(kind)


class State(NamedTuple):
    """What a finished or killed command left."""

    name: str
    folder: Path
    files: dict[str, list[str]]  # kind -> paths


class Reply(NamedTuple):
    """How a command ended."""

    code: int
    errors: str


class Subject:
    """A recipe, what an undisturbed run gives, and states to damage."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        recipe.reset()
        begin = time.monotonic()
        reply = run_here(recipe)
        if reply.code:
            raise RuntimeError(f"{recipe.name}: {reply.errors}")
        self.seconds = time.monotonic() - begin
        self.files = snapshot(recipe.out)
        self.bytes = sum(512 * p.lstat().st_blocks for p in recipe.out.rglob("*"))
        self.states = [self._keep("finished")]
        for moment in KILLS[recipe.name]:
            recipe.reset()
            codes, output = recipe.finish(recipe.start(W2S_CAMPAIGN_KILL=moment))
            if -signal.SIGKILL not in codes:
                raise RuntimeError(f"{recipe.name}: {moment} killed nothing: {codes} {output}")
            self.states.append(self._keep(f"killed at {moment}"))

    def _keep(self, name: str) -> State:
        folder = self.recipe.folder / f"state-{re.sub('[^a-z0-9]', '-', name)}"
        restore(self.recipe.out, folder)
        files: dict[str, list[str]] = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            relative = path.relative_to(folder).as_posix()
            files.setdefault(kind_of(f"/{relative}"), []).append(relative)
        return State(name, folder, files)


def run_here(recipe: Recipe) -> Reply:
    """Run the command in this process, or in processes of its own for several ranks."""
    if recipe.size > 1:
        return run_there(recipe)
    args = [recipe.command, "--config", str(recipe.folder / "config.yaml"), "--quiet"]
    errors = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_time_limit())
        stack.enter_context(program.small_files(plain=recipe.plain))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(errors))
        stack.enter_context(warnings.catch_warnings())
        try:
            code = cli.main(args)
        except Exception as e:  # a process would print a traceback
            return Reply(1, f"Traceback: {type(e).__name__}: {e}")
    return Reply(code, errors.getvalue())


def run_there(recipe: Recipe, *more: str, **env: str) -> Reply:
    """Run the command in processes of its own."""
    return reply_of(*recipe.finish(recipe.start(*more, **env)))


def reply_of(codes: list[int], output: str) -> Reply:
    """Return the reply of a command; of the output of one that ended well, only notes."""
    whole = any(codes) or "Traceback" in output
    notes = [line for line in output.splitlines() if line.startswith("note: ")]
    return Reply(max(codes, key=abs), output if whole else "\n".join(notes))


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"no end after {_LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault(reply: Reply, recipe: Recipe, expected: dict[str, Any]) -> str:
    """Return what is wrong with the end of a command; "" if nothing is.

    One line for an error is one of every process.
    """
    lines = [line for line in reply.errors.splitlines() if line.strip()]
    text = " / ".join(lines)[-400:]
    if "Traceback" in reply.errors:
        return text
    if reply.code:
        clear = all(line.startswith("w2s-fast: error: ") for line in lines)
        clear = clear and 0 < len(lines) <= recipe.size
        return "" if reply.code == 2 and clear else f"exit code {reply.code}: {text}"
    if wrong := differences(snapshot(recipe.out), expected):
        return f"{'; '.join(wrong[:3])}: {text}"
    notes = all(line.startswith(("note: ", "warning: ")) for line in lines) and len(lines) <= 3
    return "" if notes else f"printed {text}"
