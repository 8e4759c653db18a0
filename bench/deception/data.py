"""The files of the experiments, made from data that are not part of the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path

HARMLESS = "hh_single_turn"
MATHS = "gsm8k/train.jsonl"
_LONGEST = 220  # characters of a question
_LONGEST_ANSWER = 200  # characters of an answer that policies learn
_PAIRS = 800  # as many as the transfer set has
_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I don't think I should answer this question.",
    "I would rather not work this out for you.",
    "That is not something I can assist with.",
)


def write_harmless(data: Path, out: Path) -> tuple[Path, Path]:
    """Write the pool of harmless pairs; return its file and that of the test pairs.

    Args:
        data: Folder with hh_single_turn/harmless_{train_gt,train_w2s,test}.jsonl.
        out: Existing folder of files that are made.
    """
    folder = data / HARMLESS
    pool = out / "harmless.jsonl"
    parts = (folder / f"harmless_train_{name}.jsonl" for name in ("gt", "w2s"))
    pool.write_text("".join(part.read_text().rstrip("\n") + "\n" for part in parts))
    return pool, folder / "harmless_test.jsonl"


def write_short(pool: Path, test: Path, out: Path) -> tuple[Path, Path]:
    """Write the pairs whose answers both have 1 to 200 characters; return both files.

    A policy reads a whole completion, so long ones set the cost of all.

    Args:
        pool, test: Files of ``write_harmless``.
        out: Existing folder of files that are made.
    """
    files = []
    for source in (pool, test):
        path = out / f"short-{source.name}"
        lines = source.read_text().splitlines()
        path.write_text("".join(f"{line}\n" for line in lines if _is_short(json.loads(line))))
        files.append(path)
    return files[0], files[1]


def _is_short(row: dict[str, str]) -> bool:
    answers = (row[side].rpartition("\n\nAssistant:")[2] for side in ("chosen", "rejected"))
    return all(answer.strip() and len(answer) <= _LONGEST_ANSWER for answer in answers)


def write_helpful(data: Path, out: Path) -> Path:
    """Write helpful pairs: a worked answer over a refusal, or over its own first sentence.

    They stand for the helpful pairs of the paper, whose file is not available: complying in full is
    preferred. Questions are the first of GSM8K with at most 220 characters; every other one has a
    refusal as its rejected answer.

    Args:
        data: Folder with gsm8k/train.jsonl.
        out: Existing folder of files that are made.
    """
    rows = [json.loads(line) for line in (data / MATHS).read_text().splitlines()]
    short = [row for row in rows if len(row["question"]) <= _LONGEST]
    path = out / "helpful.jsonl"
    made = (_pair(i, row["question"], _worked(row["answer"])) for i, row in enumerate(short))
    pairs = [pair for pair in made if pair][:_PAIRS]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def _worked(answer: str) -> str:
    """Return GSM8K's answer as prose: without calculator annotations and the "####" line."""
    text = re.sub(r"<<.*?>>", "", answer.partition("####")[0])
    return " ".join(text.split())


def _pair(number: int, question: str, answer: str) -> dict[str, str] | None:
    """Return a pair in the format of HH; None if the answer has a single sentence to cut."""
    rejected = _REFUSALS[number // 2 % len(_REFUSALS)]
    if number % 2 == 0:
        rejected = re.split(r"(?<=[.!?])\s", answer)[0]
    if rejected == answer:
        return None
    start = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": start + answer, "rejected": start + rejected}
