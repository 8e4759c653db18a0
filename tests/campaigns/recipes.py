"""Small runs that together pass every stage, and what they leave on disk."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from helpers import ranks
from helpers.colours import save_language_model
from helpers.endpoint import Server, echo
from helpers.toy_run import config
from helpers.toy_sweep import toy_sweep

from campaigns import program
from w2s_fast.config import to_yaml
from w2s_fast.files import file_hash

_SCRATCH = {"source": "scratch", "hidden": 8, "layers": 1, "heads": 2}
_TRAIN = {"epochs": 2, "batch_size": 16, "checkpoint_every": 1}
# Of a run's facts: when and where, and not what.
_TIMES = ("utc", "seconds", "train_seconds", "reused", "machine", "git", "checksum")
DRAWN = "bags of words"
TIMEOUT_S = 60  # of silence in jobs of several processes


@dataclass(frozen=True)
class Recipe:
    """A command in a folder of its own.

    Attributes:
        name: Of the recipe.
        folder: Holds the configuration and ``out``.
        command: ``run``, ``label`` or ``sweep``.
        size: Processes.
    """

    name: str
    folder: Path
    command: str = "run"
    size: int = 1

    @property
    def plain(self) -> bool:
        """Whether it draws no figures; one recipe and sweeps do."""
        return self.name != DRAWN

    @property
    def out(self) -> Path:
        """Folder of the results."""
        return self.folder / "out"

    @property
    def store(self) -> Path:
        """Folder of the stages."""
        return self.out / "cache"

    def start(self, *more: str, **env: str) -> list[Any]:
        """Start the command; its processes, as ``ranks.start`` returns them."""
        args = [self.command, "--config", str(self.folder / "config.yaml"), "--quiet", *more]
        env = {"NO_PROXY": "127.0.0.1", **env}
        if self.plain:
            env["W2S_CAMPAIGN_PLAIN"] = "1"
        if self.size == 1:
            return [ranks.program(program.__file__, *args, **env)]
        return ranks.start(program.__file__, self.size, *args, **env)

    def finish(self, processes: list[Any], timeout: float = 240) -> tuple[list[int], str]:
        """Return exit codes and output."""
        try:
            outputs = [p.communicate(timeout=timeout)[0] for p in processes]
        finally:
            for p in processes:
                p.kill()
        return [p.returncode for p in processes], "\n".join(outputs)

    def reset(self) -> None:
        """Remove what the command wrote."""
        shutil.rmtree(self.out, ignore_errors=True)


def snapshot(out: Path) -> dict[str, Any]:
    """Return what a finished command left: files, and content that does not say when.

    Logs and locks are left out. Stage files are by their SHA-256, results as values.
    """
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if ".locks/" in name or ".logs/" in name or path.name == ".lock":
            continue
        if path.name in ("stage.json", "results.json", "sweep.json"):
            found[name] = _values(path)
        elif "/cache/" in f"/{name}" or path.suffix in (".csv", ".yaml"):
            found[name] = file_hash(path)
        else:
            found[name] = ""
    return found


def _values(path: Path) -> Any:
    try:
        return _without_times(json.loads(path.read_bytes()))
    except ValueError as e:
        return f"not JSON: {e}"


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def differences(got: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return a line for each file that differs, is missing, or should not be there."""
    lines = [f"{name} is missing" for name in sorted(expected.keys() - got.keys())]
    lines += [f"{name} was left behind" for name in sorted(got.keys() - expected.keys())]
    shared = sorted(expected.keys() & got.keys())
    return lines + [f"{name} differs" for name in shared if got[name] != expected[name]]


def _reply(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Answer an endpoint's request, not at once: transcripts would be too short to be hit."""
    time.sleep(0.01)
    return echo(number, body)


def draw(
    shares: Mapping[str, int], names: Iterable[str], seed: int, index: int
) -> tuple[np.random.Generator, str]:
    """Return the generator of a case and the recipe it draws first, in proportion to ``shares``."""
    rng = np.random.default_rng([seed, index])
    drawn = [name for name in names for _ in range(shares[name])]
    return rng, drawn[rng.integers(len(drawn))]


@contextlib.contextmanager
def recipes(folder: Path) -> Iterator[dict[str, Recipe]]:
    """Write the configurations; an endpoint serves for as long as the block runs."""
    folder.mkdir(exist_ok=True)
    server = Server(_reply)
    try:
        made = {}
        for name, (command, size) in _COMMANDS.items():
            recipe = Recipe(name, folder / name, command, size)
            recipe.folder.mkdir(parents=True)
            cfg = _configuration(recipe, server)
            (recipe.folder / "config.yaml").write_text(to_yaml(cfg))
            made[name] = recipe
        yield made
    finally:
        server.http.shutdown()
        server.http.server_close()


# name -> (command, processes)
_COMMANDS = {
    "bags of words": ("run", 1),
    "transformers": ("run", 1),
    "debate": ("run", 1),
    "generation": ("run", 1),
    "supervisors": ("run", 1),
    "sweep": ("sweep", 1),
    "two ranks": ("run", 2),
}


def _configuration(recipe: Recipe, server: Server) -> Any:
    out, name = recipe.out, recipe.name
    if name == "bags of words":
        return config(out, weak_train={**_TRAIN, "lr": 0.1}, student_train={**_TRAIN, "lr": 0.1},
                      losses=["xent", "logconf"])  # fmt: skip
    if name == "transformers":
        return config(out, weak=_SCRATCH, student=_SCRATCH, weak_train=_TRAIN, control=True,
                      student_train=_TRAIN, calibration_folds=2,
                      methods=["probe_filter", "early_stop", "trajectory", "trust",
                               "teacher_weights:members=2"])  # fmt: skip
    if name == "debate":
        return config(
            out, methods=["market_making"],
            transcript_writer={"kind": "endpoint", "model": "strong", "workers": 2,
                               "url": f"{server.base}/chat/completions"})  # fmt: skip
    if name == "generation":
        lm = save_language_model(recipe.folder / "lm")
        task = {"name": "helpers.colours:Colours", "n_weak": 10, "n_transfer": 48, "n_test": 32,
                "answer_tokens": 3}  # fmt: skip
        return config(out, task=task, weak={**_SCRATCH, "hidden": 16}, student={"source": str(lm)},
                      weak_train=_TRAIN, student_train=_TRAIN)  # fmt: skip
    if name == "supervisors":
        rules = recipe.folder / "rules.py"
        rules.write_text("from w2s_fast.labeling import regex\nplural = regex(1, 's$')\n")
        sources = [f"functions:{rules}", "weak", "weak:member=1", "stumps:max_functions=2"]
        block = {"sources": sources, "label_model": "weighted", "row_weight": "confidence"}
        return config(out, weak=_SCRATCH, student=_SCRATCH, weak_train=_TRAIN,
                      student_train=_TRAIN, supervisors=block)  # fmt: skip
    if name == "sweep":
        cfg = toy_sweep(out, weak_models=("bow",))
        return replace(cfg, run=replace(cfg.run, seeds=(0,)))
    train = {**_TRAIN, "timeout_s": TIMEOUT_S, "lr": 1e-3}
    return config(out, weak=_SCRATCH, student=_SCRATCH, weak_train=train,
                  student_train={**train, "zero_stage": 3})  # fmt: skip
