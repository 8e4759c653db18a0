"""A patched model in whole: copied, but not pickled."""

from __future__ import annotations

import copy
import io
import multiprocessing.reduction
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_lms import batch, tiny_lm

import w2s_fast
from w2s_fast.errors import W2SError

WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "pickle": lambda lm, folder: pickle.dumps(lm),
    "protocol 2": lambda lm, folder: pickle.dumps(lm, 2),
    "python": lambda lm, folder: pickle._Pickler(io.BytesIO()).dump(lm),  # type: ignore[attr-defined]
    "torch": lambda lm, folder: torch.save(lm, io.BytesIO()),
    "torch to a file": lambda lm, folder: torch.save(lm, folder / "model.pt"),
    "torch, old": lambda lm, folder: torch.save(
        lm, io.BytesIO(), _use_new_zipfile_serialization=False
    ),
    "a process": lambda lm, folder: multiprocessing.reduction.ForkingPickler.dumps(lm),
    "within": lambda lm, folder: pickle.dumps({"model": torch.nn.Sequential(lm)}),
    "head": lambda lm, folder: pickle.dumps(lm.lm_head),
    "method": lambda lm, folder: pickle.dumps(lm.forward),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_pickle_says_what_to_do(way: str, tmp_path: Path) -> None:
    lm = w2s_fast.patch(tiny_lm(num_hidden_layers=1))
    with pytest.raises(W2SError, match=r"cannot be pickled.*unpatch\(model\).*save_pretrained"):
        WAYS[way](lm, tmp_path)
    lm(**batch()).loss.backward()  # still patched
    w2s_fast.unpatch(lm)
    WAYS[way](lm, tmp_path)
    again = pickle.loads(pickle.dumps(lm))
    assert torch.equal(again(**batch()).loss, lm(**batch()).loss)


def test_adapted_models() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    lm = w2s_fast.patch(peft.get_peft_model(tiny_lm(), config))
    with pytest.raises(W2SError, match="cannot be pickled"):
        pickle.dumps(lm)
    assert copy.deepcopy(lm)(**batch()).loss.requires_grad


@pytest.mark.parametrize("loss", ["xent", "logconf"])
def test_copies_are_patched_models_of_their_own(loss: str) -> None:
    from w2s_fast.integrations.patching import set_progress

    lm = w2s_fast.patch(tiny_lm(), loss=loss)
    set_progress(lm, 0.05)
    twin = copy.deepcopy(lm)
    expected = lm(**batch()).loss
    assert torch.equal(twin(**batch()).loss, expected)
    set_progress(twin, 1.0)
    assert lm._w2s_fast.step_frac == 0.05
    torch.testing.assert_close(lm(**batch()).loss, expected)
    assert torch.equal(copy.copy(lm)(**batch()).loss, expected)
    average = torch.optim.swa_utils.AveragedModel(lm)
    assert torch.equal(average(**batch()).loss, expected)
    w2s_fast.unpatch(twin)
    pickle.dumps(twin)


def test_weights_are_saved_as_ever(tmp_path: Path) -> None:
    lm = w2s_fast.patch(tiny_lm())
    lm.save_pretrained(tmp_path)
    torch.save(lm.state_dict(), tmp_path / "weights.pt")
    again = type(lm).from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, lm.lm_head.weight)
