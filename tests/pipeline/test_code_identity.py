"""A result is filed under the code of the user's classes that a spec names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.toy_run import config

from w2s_fast.errors import W2SError
from w2s_fast.labeling import loading
from w2s_fast.pipeline import run

LOSS = """
from dataclasses import dataclass
from w2s_fast.losses import Loss

@dataclass(frozen=True, kw_only=True)
class Sharpened(Loss):
    power: float = 2.0

    def forward(self, logits, weak, ctx):
        if weak.is_floating_point():
            weak = weak.pow(self.power)
            weak = weak / weak.sum(-1, keepdim=True)
        return self._fused(logits, weak, ctx)
"""
METHOD = """
from dataclasses import dataclass
import numpy as np
from w2s_fast.methods import Method, number

@dataclass(frozen=True, kw_only=True)
class Surest(Method):
    share: float = number(0.8, 0.0, 1.0)

    def labels(self, plan, labels):
        return plan.apply(self.select, weak=labels)

    def select(self, weak, seed):
        top = weak.probs.max(axis=1)
        return weak.keep(top >= np.quantile(top, 1 - self.share))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "own_classes"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(loading, "_imported", {})
    yield folder
    forget()


def forget() -> None:
    """What another process does not know."""
    for name in [name for name in sys.modules if name.startswith("own_classes")]:
        del sys.modules[name]
    loading._imported.clear()
    importlib.invalidate_caches()


def reused(results: dict[str, Any]) -> dict[str, bool]:
    return {name: stage["reused"] for name, stage in results["provenance"]["stages"].items()}


KINDS = {  # file, its text, an edit, the setting, and which stages an edit changes
    "loss": ("losses.py", LOSS, ("weak.pow(self.power)", "1 - weak"),
             {"losses": ["xent", "own_classes.losses:Sharpened:power=3"]}, "Sharpened"),
    "loss of a chain": (
        "losses.py", LOSS, ("weak.pow(self.power)", "1 - weak"),
        {"methods": ["naive", "resample@own_classes.losses:Sharpened:power=3"]},
        "Sharpened",
    ),
    "method": ("methods.py", METHOD, (">= np.quantile(top, 1 - self.share)", "<= top.mean()"),
               {"methods": ["naive", "resample|own_classes.methods:Surest:share=0.5"]}, "Surest"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_class_is_computed_again(kind: str, package: Path, tmp_path: Path) -> None:
    file, text, (old, new), settings, name = KINDS[kind]
    assert old in text
    (package / file).write_text(text)
    cfg = config(tmp_path / "out", **settings)
    first = run(cfg)
    (package / file).write_text(text.replace(old, new))
    with pytest.raises(W2SError, match=f"own_classes.{file[:-3]} was edited after it was imported"):
        run(cfg)
    forget()
    again = run(cfg)
    changed = {stage for stage, stored in reused(again).items() if not stored}
    own = {stage for stage in reused(again) if name in stage}
    assert {"report"} < changed <= own | {"report"}
    before, after = ([r["student"] for r in results["runs"]] for results in (first, again))
    assert before[0] == after[0] and before[1] != after[1]
    assert all(reused(run(cfg)).values())
