"""Students of a run: a loss that is written in two ways is one student, stored once."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.toy_run import config

from w2s_fast.errors import W2SError
from w2s_fast.pipeline.students import students

SPELLINGS = ("logconf", "logconf:aux_coef=0.5", "logconf:warmup_frac=0.1,aux_coef=0.50")


def test_spellings_of_a_loss_share_a_canonical_form(tmp_path: Path) -> None:
    forms = {students(config(tmp_path, losses=[loss]))[0].canonical_loss for loss in SPELLINGS}
    assert len(forms) == 1
    other = students(config(tmp_path, losses=["logconf:aux_coef=0.25"]))[0]
    assert other.canonical_loss not in forms and other.loss == "logconf:aux_coef=0.25"


@pytest.mark.parametrize("pinned", SPELLINGS)
def test_a_pinned_loss_may_not_repeat_another(pinned: str, tmp_path: Path) -> None:
    cfg = config(tmp_path, losses=["logconf"], methods=["confident", f"confident@{pinned}"])
    with pytest.raises(W2SError, match="are the same; drop one"):
        students(cfg)
