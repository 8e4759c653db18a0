"""Legal reasoning: does a clause of a privacy policy answer a question? (Ye, Xiao & Hui 2024).

The set is LegalBench's privacy_policy_qa (Guha et al. 2023; Ravichander et al. 2019). Its training
split has eight rows, so all three splits come from the test split; questions about one clause stay
in one split. The original code puts an instruction before every text; here the instruction is the
prompt of a language model, and a classifier reads question and clause alone. The hub stores the set
with a loading script, which is never run; the hub's own conversion to Parquet is read.
"""

from __future__ import annotations

from random import Random

from w2s_fast.errors import W2SError
from w2s_fast.tasks._hub import HubTask, Item, Row

_CLASSES = ("irrelevant", "relevant")


def format_row(row: Row, rng: Random) -> Item:
    """Show question and clause; ``rng`` is not used."""
    answer = row["answer"].strip().lower()
    if answer not in _CLASSES:
        raise W2SError(f"answer is {row['answer']!r}; expected Relevant or Irrelevant")
    text = f"Question: {row['question']}\nClause: {row['text']}"
    return Item(text, _CLASSES.index(answer), row["text"])


_SHARE = "We share your e-mail address with couriers so that they can announce a delivery."
_DELETE = "You may ask us to delete your account; we do so within thirty days."
_COLUMNS = ("question", "text", "answer")
_SAMPLES = (
    ("Who gets my e-mail address?", _SHARE, "Relevant"),
    ("Do you use cookies?", _SHARE, "Irrelevant"),
    ("How long does it take to delete my account?", _DELETE, "Relevant"),
    ("Do you sell my photos?", _DELETE, "Irrelevant"),
    ("Can I see my data?", "Write to us and we send you a copy of your data.", "Relevant"),
)
WTS_LEGAL = HubTask(
    name="wts_legal",
    repo="nguha/legalbench",
    columns=_COLUMNS,
    class_names=_CLASSES,
    format=format_row,
    samples=tuple(dict(zip(_COLUMNS, values, strict=True)) for values in _SAMPLES),
    train_split="test",
    config="privacy_policy_qa",
    revision="refs/convert/parquet",
    prompt="{text}\nDoes the clause hold enough to answer the question?",
)
