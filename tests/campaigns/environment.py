"""Disks that are full or read-only, missing permissions, races, wrong clocks and moved folders.

A case puts one command into one such environment, in a new or a half-finished folder. The command
must end like an undisturbed run or with one line that is an error message. What was stored before
is not touched, and once the environment is mended the same command ends like an undisturbed run.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from helpers.paths import PYTHONPATH

from campaigns import program
from campaigns.damages import restore
from campaigns.outcome import Outcome
from campaigns.recipes import draw, recipes
from campaigns.states import Reply, State, Subject, fault, reply_of, run_there

SHARES = {"bags of words": 4, "transformers": 3, "debate": 2, "generation": 2, "sweep": 1}
_MIB = 2**20
_FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


class Place:
    """A recipe in one environment: runs the command, and knows what may not be lost."""

    def __init__(self, subject: Subject, rng: np.random.Generator) -> None:
        self.subject, self.rng = subject, rng
        self.recipe = subject.recipe
        self.faults: list[str] = []
        self.state: State | None = None

    def begin(self) -> None:
        """Start from nothing, or from what a kill left."""
        number = int(self.rng.integers(len(self.subject.states) + 1))
        self.recipe.reset()
        self.recipe.out.mkdir()
        if number:
            self.state = self.subject.states[number - 1]
            restore(self.state.folder, self.recipe.out)

    def run(self, *more: str, allowed: tuple[int, ...] = (0, 2), **env: str) -> Reply:
        """Run the command; it has to end well or with one line."""
        return self.judge(self.recipe.start(*more, **env), allowed)

    def judge(self, processes: list[Any], allowed: tuple[int, ...] = (0, 2)) -> Reply:
        """Wait for a command that was started."""
        reply = reply_of(*self.recipe.finish(processes))
        lines = [line for line in reply.errors.splitlines() if line.strip()]
        clear = len(lines) == 1 and lines[0].startswith("w2s-fast: error: ")
        bad = "Traceback" in reply.errors or reply.code not in allowed
        if bad or (reply.code and not clear):
            self.faults.append(f"exit code {reply.code}: {' / '.join(lines)[-500:]}")
        return reply

    def stored(self) -> dict[str, int]:
        """Return the finished stages and when their records were written, in nanoseconds."""
        metas = self.recipe.store.glob("[a-z]*/stage.json")
        return {m.parent.name: m.stat().st_mtime_ns for m in metas}

    def after(self, before: dict[str, int], *more: str) -> None:
        """Check that nothing was lost, and that the same command ends like an undisturbed run."""
        now = self.stored()
        if lost := [name for name, stamp in before.items() if now.get(name) != stamp]:
            self.faults.append(f"lost or written again: {', '.join(sorted(lost))}")
        reply = run_there(self.recipe, *more)
        if wrong := fault(reply, self.recipe, self.subject.files):
            self.faults.append(f"afterwards: {wrong}")

    def later(self) -> None:
        """Wait for a random moment of a run."""
        time.sleep(self.rng.uniform(0, 1) * self.subject.seconds)


@contextlib.contextmanager
def _disk(path: Path, size: int) -> Iterator[Callable[[str], None]]:
    """Mount a disk of ``size`` bytes with what is in ``path``; yields a function to change it."""
    kept = path.with_name(f"{path.name}-kept")
    path.mkdir(exist_ok=True)
    restore(path, kept)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "disk", str(path)], check=True)

    def change(options: str) -> None:
        command = ["mount", "-o", f"remount,{options}", str(path)]
        subprocess.run(command, check=True, capture_output=True)

    try:
        for child in kept.iterdir():
            subprocess.run(["cp", "-a", str(child), str(path)], check=True)
        used = sum(512 * p.lstat().st_blocks for p in path.rglob("*"))
        change(f"size={used + size}")
        yield change
    finally:
        while subprocess.run(["umount", str(path)], capture_output=True).returncode:
            time.sleep(0.05)
        restore(kept, path)


def disk_full(place: Place) -> None:
    """A disk with room for a part of the run."""
    place.begin()
    with _disk(place.recipe.out, int(place.rng.integers(0, place.subject.bytes))) as change:
        before = place.stored()
        place.run()
        change("size=64m")
        place.after(before)


def output_disk_full(place: Place) -> None:
    """Stages on another disk; the results do not fit."""
    place.begin()
    store = place.recipe.folder / "store"
    if place.recipe.command == "sweep":
        return disk_full(place)
    with _disk(place.recipe.out, int(place.rng.integers(0, 8)) * 4096) as change:
        place.run("--cache_dir", str(store))
        change("size=64m")
        reply = place.run("--cache_dir", str(store))
        if reply.code or not (place.recipe.out / "results.json").is_file():
            place.faults.append("afterwards: no results")
    subprocess.run(["rm", "-r", str(store)], check=False)
    return None


def read_only(place: Place) -> None:
    """A disk that is read-only from the start."""
    place.begin()
    with _disk(place.recipe.out, 16 * _MIB) as change:
        before = place.stored()
        change("ro")
        place.run()
        change("rw")
        place.after(before)


def becomes_read_only(place: Place) -> None:
    """A disk that becomes read-only while a file is open for writing is busy; then it is full."""
    place.begin()
    with _disk(place.recipe.out, 16 * _MIB) as change:
        before = place.stored()
        processes = place.recipe.start()
        place.later()
        with contextlib.suppress(subprocess.CalledProcessError):  # busy: a file is written
            change("ro")
        place.judge(processes)
        change("rw")
        place.after(before)


def no_permission(place: Place) -> None:
    """A folder that may not be written, not be entered, or neither read."""
    place.begin()
    out = place.recipe.out
    place.recipe.store.mkdir(exist_ok=True)
    folders = sorted([out, *(p for p in out.rglob("*") if p.is_dir())])
    folder = folders[place.rng.integers(len(folders))]
    mode = (0o555, 0o000, 0o444)[place.rng.integers(3)]
    before, right = place.stored(), folder.stat().st_mode
    folder.chmod(mode)
    place.run(W2S_CAMPAIGN_OBEY="1")
    if folder.exists():
        folder.chmod(right)
    place.after(before)


def two_runs(place: Place) -> None:
    """Two commands at the same time: in one folder, or with one store."""
    place.begin()
    more = []
    if place.rng.random() < 0.5 and place.recipe.command == "run":
        more = ["--out", str(place.recipe.folder / "second"),
                "--cache_dir", str(place.recipe.store)]  # fmt: skip
    first = place.recipe.start()
    time.sleep(place.rng.uniform(0, 0.5) * place.subject.seconds)
    second = place.recipe.start(*more)
    codes = [place.judge(processes).code for processes in (first, second)]
    if 0 not in codes or (more and any(codes)):
        place.faults.append(f"exit codes of the two {codes}")
    subprocess.run(["rm", "-rf", str(place.recipe.folder / "second")], check=True)
    place.after({})


def wrong_times(place: Place) -> None:
    """Files of the future or of 1970."""
    place.begin()
    before = place.stored()
    shift = (10**4, 10**8, -(10**10))[place.rng.integers(3)]
    for path in place.recipe.out.rglob("*"):
        stamp = max(0, int(time.time() + shift * place.rng.random()))
        os.utime(path, (stamp, stamp), follow_symlinks=False)
    place.run(allowed=(0,))
    place.after({name: place.stored()[name] for name in before})


def clock_set_back(place: Place) -> None:
    """A process whose clock is days behind, and a second one years ahead."""
    place.begin()
    command = [sys.executable, program.__file__, "run", "--quiet"]
    command += ["--config", str(place.recipe.folder / "config.yaml")]
    for offset in ("-3d", "+2y"):
        env = {**os.environ, "PYTHONPATH": PYTHONPATH, "NO_PROXY": "127.0.0.1",
               "LD_PRELOAD": str(_FAKETIME), "FAKETIME": offset}  # fmt: skip
        if place.recipe.plain:
            env["W2S_CAMPAIGN_PLAIN"] = "1"
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
        if done.returncode or "Traceback" in done.stderr:
            place.faults.append(f"clock {offset}: {done.returncode} {done.stderr[-300:]}")
    place.after({})


def moved_between(place: Place) -> None:
    """The folder under another name, then back."""
    place.begin()
    elsewhere = place.recipe.folder / "elsewhere"
    os.replace(place.recipe.out, elsewhere)
    more = [f"--{'output_dir' if place.recipe.command == 'sweep' else 'out'}", str(elsewhere)]
    stages = {p.parent.name for p in elsewhere.glob("cache/[a-z]*/stage.json")}
    stamps = {n: (elsewhere / "cache" / n / "stage.json").stat().st_mtime_ns for n in stages}
    place.run(*more, allowed=(0,))
    os.replace(elsewhere, place.recipe.out)
    place.after(stamps)


def moved_during(place: Place) -> None:
    """The folder is moved while the command runs, and back afterwards."""
    place.begin()
    elsewhere = place.recipe.folder / "elsewhere"
    processes = place.recipe.start()
    place.later()
    os.replace(place.recipe.out, elsewhere)
    place.judge(processes)
    made_again = place.recipe.out.exists()
    if made_again:
        place.recipe.reset()
    os.replace(elsewhere, place.recipe.out)
    place.after({})


SITUATIONS: dict[str, Callable[[Place], None]] = {
    "disk full": disk_full,
    "disk of the output full": output_disk_full,
    "read-only": read_only,
    "becomes read-only": becomes_read_only,
    "no permission": no_permission,
    "two runs": two_runs,
    "wrong times of files": wrong_times,
    "clock set back": clock_set_back,
    "moved between runs": moved_between,
    "moved during a run": moved_during,
}


def available(name: str) -> bool:
    """Return whether the machine can make the situation."""
    return name != "clock set back" or _FAKETIME is not None


def run(cases: Iterable[int], seed: int, folder: Path, names: Iterable[str] = SHARES) -> Outcome:
    """Put commands into environments; a case is one of them."""
    outcome, subjects = Outcome(), {}
    situations = [name for name in SITUATIONS if available(name)]
    with recipes(folder) as made:
        for index in cases:
            rng, name = draw(SHARES, names, seed, index)
            situation = situations[index % len(situations)]
            if situation == "clock set back":
                name = "debate" if "debate" in names else name
            if name not in subjects:
                subjects[name] = Subject(made[name])
            _case(subjects[name], situation, rng, index, outcome)
            print(index, situation, name, file=sys.stderr, flush=True)
    return outcome


def _case(
    subject: Subject, situation: str, rng: np.random.Generator, index: int, outcome: Outcome
) -> None:
    place = Place(subject, rng)
    SITUATIONS[situation](place)
    outcome.cases += 1
    outcome.count(situation)
    state = "a new folder" if place.state is None else place.state.name
    for line in place.faults:
        outcome.fail(index, f"{situation}, {subject.recipe.name}, {state}: {line}")
