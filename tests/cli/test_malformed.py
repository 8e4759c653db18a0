"""Malformed inputs: a short version of the campaign, and each defect that it found."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from campaigns.malformed import KINDS
from campaigns.malformed.attempt import Attempt, problem
from campaigns.malformed.inputs import run, toy_settings, write_settings

pytestmark = pytest.mark.slow

# Faults that were a traceback, a hang, a line without end, or an error after a training.
FOUND = {
    "configuration": (
        "alias of itself", "number of many digits", "long value", "half a surrogate pair",
        "file: pipe", "null", "surrogate",
    ),
    "data file": ("file: pipe",),
    "checkpoint": (
        "config.json: missing", "config.json: zeros", "sizes of the wrong type",
        "weights cut short", "weights of another shape", "weights missing", "index",
        "tokenizer is other JSON", "kind of model", "tokenizer larger than the model",
    ),
    "label store": ("record: pipe", "folder is a file", "folder is a link", "begun: a file"),
    "endpoint reply": ("no JSON", "status"),
    "hostfile": ("file: pipe", "long", "options"),
    "environment": ("port",),
    "sweep": ("file: pipe",),
    "DeepSpeed settings": ("file: missing", "file: pipe", "type of a block", "other JSON"),
    "hub data": ("text nested", "answers nested"),
}  # fmt: skip
# What ends in an error in a second, so that it needs no training: the rest is in the campaign.
QUICK = ("configuration", "data file", "checkpoint", "hostfile", "sweep", "hub data")
FOUND_CASES = [(kind, fault) for kind, faults in FOUND.items() for fault in faults]


@pytest.mark.parametrize(("kind", "fault"), FOUND_CASES, ids=[", ".join(c) for c in FOUND_CASES])
def test_what_the_campaign_found(kind: str, fault: str, tmp_path: Path) -> None:
    attempt = KINDS[kind][fault](tmp_path, Random(0))
    assert not problem(attempt, tmp_path)


@pytest.mark.parametrize("kind", QUICK)
def test_some_of_each_kind(kind: str, tmp_path: Path) -> None:
    rng = Random(kind)
    quick = [f for f in KINDS[kind] if f not in FOUND[kind]]
    for fault in rng.sample(quick, 6):
        folder = tmp_path / fault.replace("/", " ")
        folder.mkdir()
        attempt = KINDS[kind][fault](folder, rng)
        if not attempt.may_pass:
            assert not problem(attempt, folder), fault


def test_every_kind_has_ten_faults() -> None:
    assert all(len(faults) >= 10 for faults in KINDS.values())
    assert FOUND.keys() <= KINDS.keys()


def test_the_judge_notices(tmp_path: Path) -> None:
    """A valid input that is accepted, a line that names something else, and a training before."""
    args = run(write_settings(tmp_path / "run.yaml", toy_settings()))
    assert problem(Attempt([*args, "--seeds", "-1"], ("lr",)), tmp_path).startswith("none of")
    assert problem(Attempt(["run", "--print-config"], ("x",)), tmp_path).startswith("accepted")
    (tmp_path / "judged").mkdir()
    for name, raised, message in (
        ("crash", "ValueError('x')", "not one line"),
        ("late", "W2SError('late')", "ran before"),
    ):
        (tmp_path / "judged" / f"{name}.py").write_text(
            "from w2s_fast.errors import W2SError\n"
            "from w2s_fast.losses.xent import Xent\n"
            "class Raises(Xent):\n"
            "    def forward(self, logits, weak, ctx):\n"
            f"        raise {raised}\n"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(tmp_path))
            late = [*args, "--losses", f"judged.{name}:Raises", "--out", name]
            assert message in problem(Attempt(late, ("late",)), tmp_path)
