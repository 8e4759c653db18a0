"""GSM8K: grade-school word problems, with worked answers that end in "#### n" (Cobbe et al. 2021).

The calculator notes <<...>> are removed from the gold answers, as in the weak-to-strong reasoning
code of Yang, Ma & Liu (2024); prompt and final answer have its format too.
"""

from __future__ import annotations

import re
from random import Random

from w2s_fast.errors import W2SError
from w2s_fast.tasks._answer_parsing import CLASSES, PROMPT, final_number
from w2s_fast.tasks._hub import HubTask, Item, Row

_NOTE = re.compile(r"<<.*?>>")
_NEXT = "\nQuestion:"


def format_row(row: Row, rng: Random) -> Item:
    """Ask the question; ``rng`` is not used."""
    answer = _NOTE.sub("", row["answer"]).strip()
    if not read(answer):
        raise W2SError("the answer holds no number; expected it to end in '#### n'")
    question = row["question"].strip()
    return Item(f"Question: {question}\nAnswer:", 0, question, answer=f" {answer}")


def read(text: str) -> str:
    """Return the final number of an answer; a model that asks itself more is cut off there."""
    return final_number(text.split(_NEXT)[0])


_SAMPLES = (
    (
        "A crate holds 12 jars. How many jars are in 4 crates?",
        "4 crates hold 4 * 12 = <<4*12=48>>48 jars.\n#### 48",
    ),
    (
        "Rui saves $250 a month. How much has he saved after 6 months?",
        "He has saved 6 * 250 = $<<6*250=1500>>1500.\n#### 1,500",
    ),
    (
        "Half of the 30 pupils walk to school, 8 cycle. How many do neither?",
        "30 / 2 = <<30/2=15>>15 walk.\n30 - 15 - 8 = <<30-15-8=7>>7 do neither.\n#### 7",
    ),
    (
        "It was 3 degrees and is 5 degrees colder now. How many degrees is it?",
        "It is 3 - 5 = <<3-5=-2>>-2 degrees.\n#### -2",
    ),
    (
        "A loaf is cut into 16 slices. Two people eat 3 each. How many slices are left?",
        "They eat 2 * 3 = <<2*3=6>>6.\nThere are 16 - 6 = <<16-6=10>>10 left.\n#### 10",
    ),
)
GSM8K = HubTask(
    name="gsm8k",
    repo="openai/gsm8k",
    columns=("question", "answer"),
    class_names=CLASSES,
    format=format_row,
    samples=tuple({"question": q, "answer": a} for q, a in _SAMPLES),
    config="main",
    kind="generation",
    prompt=PROMPT,
    words=(),
    read=read,
)
