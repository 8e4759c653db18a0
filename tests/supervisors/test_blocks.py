"""The block ``supervisors``: what it accepts, row weights, and the digest of functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2s_fast.config import RunConfig, from_dict, to_dict, validate
from w2s_fast.errors import W2SError
from w2s_fast.supervisors import (
    Functions,
    Generated,
    LabelWords,
    SupervisorsConfig,
    VoteColumn,
    WeakModel,
    parse_source,
)
from w2s_fast.supervisors.row_weights import row_weights


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("votes", VoteColumn()),
        ("functions:rules.py", Functions("rules.py")),
        ("functions:pkg.rules:NAMES", Functions("pkg.rules:NAMES")),
        ("weak", WeakModel()),
        ("weak:member=2,threshold=0.75", WeakModel(2, 0.75)),
        ("label_words:threshold=0.6", LabelWords(0.6)),
        ("stumps", Generated("stumps")),
    ],
)
def test_sources(spec: str, source: object) -> None:
    assert parse_source(spec) == source


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("function:rules.py", "'function:rules.py' is unknown.*did you mean 'functions'"),
        ("functions", "names no functions; expected functions:FILE.py"),
        ("weak:threshold=1.5", "threshold is 1.5; expected a probability"),
        ("weak:member=-1", "member must be 0 or more"),
        ("weak:members=2", "has no field 'members'.*did you mean 'member'"),
        ("votes:threshold=0.5", "has no field 'threshold'"),
    ],
)
def test_unknown_sources_are_named(spec: str, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        validate(from_dict({"supervisors": {"sources": [spec]}}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": ["weak", "weak"]}, "'weak' is given twice"),
        ({"row_weight": "cover"}, "row_weight='cover'.*did you mean 'covered'"),
        ({"layer": "middle"}, "layer='middle'"),
        ({"class_balance": "equal"}, "class_balance='equal': expected estimated"),
        ({"class_balance": "0.5+0.6"}, "sums to 1.1; expected probabilities"),
        ({"class_balance": "1.0+0.0"}, "expected probabilities above 0"),
        ({"class_balance": "nan+0.5"}, "expected probabilities above 0"),
    ],
)
def test_bad_blocks_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(W2SError, match=message):
        from_dict({"supervisors": values})


def test_a_class_balance_is_read() -> None:
    balances = {b: SupervisorsConfig(class_balance=b).balance for b in ("estimated", "uniform")}
    assert balances == {"estimated": None, "uniform": "uniform"}
    assert SupervisorsConfig(class_balance="0.9+0.1").balance == [0.9, 0.1]


def test_the_block_is_part_of_the_configuration() -> None:
    cfg = from_dict({"supervisors": {"sources": ["weak"], "row_weight": "equal"}})
    assert from_dict(to_dict(cfg)) == cfg
    assert RunConfig().supervisors == SupervisorsConfig()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 2**20 - 1))
def test_row_weights(shares: list[float], bits: int) -> None:
    p = np.array(shares)
    probs = np.stack([p, 1 - p], 1).astype(np.float32)
    covered = np.array([bool(bits >> i & 1) for i in range(len(p))])
    assert row_weights(probs, covered, "equal") is None
    weight = row_weights(probs, covered, "covered")
    assert covered.all() if weight is None else np.array_equal(weight, covered)
    confidence = row_weights(probs, covered, "confidence")
    assert confidence is not None and ((confidence >= 0) & (confidence <= 1)).all()
    assert not confidence[~covered].any()
    sure = np.maximum(p, 1 - p)[covered]  # the surer of two rows weighs at least as much
    own = confidence[covered][np.argsort(sure)]
    assert (np.diff(own) >= -1e-6).all()


def test_confidence_is_one_minus_the_entropy() -> None:
    probs = np.array([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]], np.float32)
    weight = row_weights(probs, np.ones(3, bool), "confidence")
    expected = 1 + (0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    assert weight == pytest.approx([0.0, 1.0, expected], abs=1e-6)
