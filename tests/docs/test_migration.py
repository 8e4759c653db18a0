"""docs/migration.md: what it names now exists, and what it calls old does not."""

from __future__ import annotations

import importlib
import re
import sys

import pytest
from helpers.paths import ROOT

from w2s_fast.cli.parse import load_config
from w2s_fast.config import validate
from w2s_fast.errors import W2SError

TEXT = (ROOT / "docs" / "migration.md").read_text()


def _rows(header: str) -> list[tuple[str, str]]:
    """The (old, new) cells of the table with this header."""
    table = TEXT.split(f"| {header} |")[1].split("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return [(old, new) for old, new in rows]


def _modules(cell: str) -> list[str]:
    """Module paths in a cell; those that begin with a dot are siblings of the first."""
    found = re.findall(r"`(w2s_fast[.\w]*|tools[.\w]*|\.\w[.\w]*)`", cell.split(":")[0])
    package = found[0].rpartition(".")[0] if found else ""
    return [package + name if name.startswith(".") else name for name in found]


def _exists(name: str) -> bool:
    """Whether the name is a module or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return bool(module) and _exists(module) and hasattr(sys.modules[module], attribute)
    return True


@pytest.mark.parametrize(("old", "new"), _rows("old module | new module"))
def test_modules_moved(old: str, new: str) -> None:
    assert _modules(new) and all(map(_exists, _modules(new)))
    if ":" not in old:
        assert _modules(old)
        assert not [name for name in _modules(old) if name not in KEPT and _exists(name)]


# Modules that are packages of the same name now.
KEPT = {
    "w2s_fast.ops.balanced", "w2s_fast.ops.logprob", "w2s_fast.ops.quantile",
    "w2s_fast.ops.vocab_parallel", "w2s_fast.cli", "w2s_fast.pipeline.stages",
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), _rows("0.2 | now"))
def test_names_of_the_next_version(old: str, new: str) -> None:
    names = re.findall(r"`(w2s_fast[.\w]*)`", new)
    assert names and all(map(_exists, names))
    if " of a " not in old:
        (name,) = re.findall(r"`(w2s_fast[.\w]*)`", old)
        assert not _exists(name)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--cache=x", "cache_dir"),
        ("--chain=x", "intermediate_models"),
        ("--writer.url=x", "transcript_writer"),
        ("--student_train.zero=1", "zero_stage"),
        ("--student_train.deepspeed=x", "deepspeed_config"),
        ("--student_train.threshold=exact", "threshold_scope"),
        ("--methods=tune_lm", "generative_finetuning"),
        ("--methods=oracle_stop", "ground_truth_early_stop"),
        ("--losses=logconf:aux=1", "aux_coef"),
    ],
)
def test_an_old_setting_fails_with_the_new_name(option: str, hint: str) -> None:
    assert f"`{hint}`" in TEXT
    with pytest.raises(W2SError, match=hint):
        validate(load_config([option]))
