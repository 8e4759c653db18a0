"""Pretrain the models of the task `word_problems`: small Llamas, causal LMs on worked solutions.

The text has documents of several problems, every document with the solutions of one solver, careful
or not (see `SolversConfig`); nothing in it says which. A model that continues a document therefore
does best to infer its solver: it writes careful solutions after careful ones, and worse ones after
an empty context, where careless solvers are more frequent. No reserved problem occurs in the text,
so the model never sees a problem of the task.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from w2s_fast.tasks._config import TaskConfig
from w2s_fast.tasks._pretraining import Progress, pretrain_folder
from w2s_fast.tasks._word_problems_config import WordPretrainConfig, WordProblemsConfig
from w2s_fast.tasks.datasets import word_problems
from w2s_fast.tasks.datasets.word_problems import MARKER, SIGNS, Problem, worked

_TOKENS = 40  # of a short problem with its steps; few documents are shorter than a row
_MISREAD = {"times": "+", "fewer": "+"}


def pretrain(
    directory: str | Path, cfg: TaskConfig, seed: int, progress: Progress | None = None
) -> None:
    """Train `word-problems-lm` and save it atomically as a transformers directory.

    Args:
        directory: Destination; must not exist, or be empty.
        cfg: ``word_problems`` is used.
        seed: Seed of weights and text; the same seed gives the same file.
        progress: Called after each step with (step from 1, steps, loss in nats per token).

    Raises:
        W2SError: The directory exists and is not empty, or cannot be written.
    """
    _pretrain(directory, cfg, cfg.word_problems.pretrain, seed, progress)


def pretrain_small(
    directory: str | Path, cfg: TaskConfig, seed: int, progress: Progress | None = None
) -> None:
    """Train `word-problems-small-lm`, as `pretrain` does for `word-problems-lm`.

    Raises:
        W2SError: The directory exists and is not empty, or cannot be written.
    """
    _pretrain(directory, cfg, cfg.word_problems.pretrain_small, seed, progress)


def documents(seed: int, cfg: WordProblemsConfig, size: int) -> Iterator[str]:
    """Yield documents of ``size`` problems with the solutions of one solver, endlessly.

    Args:
        seed: Seed of the text.
        cfg: Problems, and shares of the solvers.
        size: Problems of a document.
    """
    rng = Random(f"documents/{seed}")
    shares = (cfg.solvers.careful, cfg.solvers.hasty)
    while True:
        draw = rng.random()
        solve = careful if draw < shares[0] else hasty if draw < sum(shares) else sloppy
        problems: list[Problem] = []
        while len(problems) < size:
            problem = word_problems.draw_problem(rng, cfg)
            if problem.split is None:
                problems.append(problem)
        yield "".join(p.prompt + solve(p) + word_problems.END for p in problems)


def careful(problem: Problem) -> str:
    """Return the right solution."""
    return problem.solution


def sloppy(problem: Problem) -> str:
    """Return a solution that adds where the problem says "times as many" or "fewer than"."""
    steps = [
        (_MISREAD.get(s.kind, SIGNS[s.kind]), s.number)
        for s in problem.steps
        if s.kind != "distractor"
    ]
    return worked(problem.start, steps)


def hasty(problem: Problem) -> str:
    """Return the answer of `sloppy` without its steps."""
    return f"\n{MARKER}{sloppy(problem).rpartition(MARKER)[2]}"


def _pretrain(
    directory: str | Path,
    cfg: TaskConfig,
    model: WordPretrainConfig,
    seed: int,
    progress: Progress | None,
) -> None:
    batches = _batches(model, cfg.word_problems, seed)
    tokenizer, length = word_problems.tokenizer(), word_problems.MAX_LENGTH
    pretrain_folder(directory, model, tokenizer, length, batches, seed, progress)


def _batches(model: WordPretrainConfig, cfg: WordProblemsConfig, seed: int) -> Iterator[Tensor]:
    """Yield blocks (batch_size, length), a document a row, cut off or padded at its end."""
    tokenizer = word_problems.tokenizer()
    texts = documents(seed, cfg, 1 + model.length // _TOKENS)
    while True:
        rows = [next(texts) for _ in range(model.batch_size)]
        encoded = tokenizer(rows, truncation=True, max_length=model.length, padding="max_length")
        yield torch.tensor(encoded["input_ids"])
