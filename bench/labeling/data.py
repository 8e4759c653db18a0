"""Read the texts of the benchmark, and make features of them: tf-idf, or an encoder's states.

Two WRENCH data sets, whose files also hold the votes of hand-written functions, and SST-2, with the
keyword lists below. ``rows`` of each are drawn once, with a fixed seed.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from w2s_fast.labeling import Vocabulary, apply_functions, keywords
from w2s_fast.models import ModelConfig, build_model
from w2s_fast.models.build import load_tokenizer
from w2s_fast.probing import hidden_states
from w2s_fast.tasks import Inputs
from w2s_fast.training import encode

DATA_SETS = ("youtube", "sms", "sst2")
ROWS = 1500
# A sentence per class, in the order of the classes, for zero-shot similarity of the encoder.
DESCRIPTIONS = {
    "youtube": ("A comment about the song or the video.", "Spam: subscribe to my channel."),
    "sms": ("A personal message to a friend.", "Spam: you have won a prize, call now."),
    "sst2": ("A negative movie review.", "A positive movie review."),
}
# Written before any result was seen, and not changed since.
SST2_FUNCTIONS = (
    keywords(1, ["great", "excellent", "wonderful", "superb", "masterpiece"]),
    keywords(1, ["funny", "hilarious", "entertaining", "enjoyable", "delightful"]),
    keywords(1, ["moving", "touching", "heartfelt", "powerful", "poignant"]),
    keywords(1, ["best", "beautiful", "beautifully", "brilliant", "charming"]),
    keywords(0, ["bad", "worst", "awful", "terrible", "horrible"]),
    keywords(0, ["dull", "boring", "tedious", "predictable", "bland"]),
    keywords(0, ["mess", "fails", "failure", "lacks", "lacking"]),
    keywords(0, ["silly", "stupid", "ridiculous", "pointless", "waste"]),
)


@dataclass(frozen=True)
class Texts:
    """Rows of a data set: texts, true classes (n,), votes (n, m) of hand-written functions."""

    name: str
    texts: tuple[str, ...]
    labels: np.ndarray
    votes: Tensor


def read(name: str, folder: Path, rows: int = ROWS) -> Texts:
    """Read a data set of ``DATA_SETS`` below a folder: wrench/NAME/train.json, sst2/train.tsv."""
    if name == "sst2":
        lines = (folder / name / "train.tsv").read_text().splitlines()
        pairs = [line.rsplit("\t", 1) for line in lines]
        texts, labels, votes = [p[0] for p in pairs], [int(p[1]) for p in pairs], None
    else:
        items = list(json.loads((folder / "wrench" / name / "train.json").read_text()).values())
        texts, labels = [i["data"]["text"] for i in items], [int(i["label"]) for i in items]
        votes = torch.tensor([_literal(i["weak_labels"]) for i in items])
    order = np.random.default_rng(0).permutation(len(texts))[:rows]
    kept = tuple(texts[i] for i in order)
    if votes is None:
        votes = apply_functions(SST2_FUNCTIONS, kept, n_classes=2)
    else:
        votes = votes[torch.from_numpy(order)]
    return Texts(name, kept, np.array(labels)[order], votes)


def _literal(value: object) -> object:
    """Return a value; some copies of the data hold it as text."""
    return ast.literal_eval(value) if isinstance(value, str) else value


def tf_idf(data: Texts) -> tuple[Tensor, tuple[str, ...]]:
    """Return tf-idf (n, D) of words that two texts have, and the words."""
    vocabulary = Vocabulary(min_df=2).fit(data.texts)
    return vocabulary.tf_idf(data.texts), vocabulary.words


def encoder_states(folder: Path, texts: tuple[str, ...]) -> np.ndarray:
    """Return the mean last hidden state of an encoder, (n, D) float32."""
    config = ModelConfig(source=str(folder), pooling="mean")
    tokenizer = load_tokenizer(config)
    model = build_model(config, 2, tokenizer, seed=0)
    ids = tuple(map(str, range(len(texts))))
    return hidden_states(model, encode(tokenizer, Inputs(ids, texts, None, ids), 128), "last")
