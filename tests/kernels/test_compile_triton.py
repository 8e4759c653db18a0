"""Every Triton kernel compiles for GPUs that are not here, without spills and with wide accesses.

Numbers come from the machine code (``triton_audit.py``). They catch the compile errors, register
spills and 16-bit loads that the interpreter cannot see, and what an element of a row costs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest
from helpers import machine_limits, ranks
from helpers.paths import PYTHONPATH, TESTS

from tools.machine_model.count import HEAD, line
from tools.machine_model.prediction import from_dict

AUDIT = TESTS / "helpers" / "triton_audit.py"
# Ampere, Hopper, Blackwell. Bytes of shared memory that one block may use.
SHARED = {80: 166_912, 90: 232_448, 100: 232_448}
REGISTERS = 255
# Accesses of the stack within loops over a row, by kernel and architecture, and why.
LOOPED = {
    ("rows dense fp32", 100): (4, "a sum and its guard; sm_100 gives the loop fewer registers"),
    ("two classes grid", 100): (8, _RECORD := "addresses of the record, in its phase alone"),
    ("two classes grid dense", 100): (4, _RECORD),
    ("two classes grid checks", 100): (6, _RECORD),
    ("two classes grid checks dense", 100): (4, _RECORD),
}
# Kernel -> (bytes of stack it may use, reason). In other loops over a row nothing may spill.
SPILLS = {
    "rows": (32, "addresses, parked while the row is read: makes room for a second block an SM"),
    "kth finish": (16, "runs once, in one block"),
    "two classes grid": (40, _RECORD),
    "two classes 2048": (8, "runs once, in one block that holds all rows; on sm_100 alone"),
}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    pytest.importorskip("triton", reason="backend triton is missing")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # An old cache would be audited in place of this source.
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    env["PYTHONPATH"] = PYTHONPATH
    runs = [
        subprocess.Popen(
            [sys.executable, AUDIT, *arches, *(["--all"] if ranks.LONG else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for arches in (["80", "90"], ["100"])
    ]
    rows = []
    for run in runs:
        out, err = run.communicate()
        assert run.returncode == 0, err[-4000:]
        rows += [json.loads(line) for line in out.splitlines()]
    return rows


@pytest.mark.slow
def test_no_spills_and_wide_accesses(
    audit: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(table(audit))
    assert {r["arch"] for r in audit} == set(SHARED)
    wrong = [f"{r['name']} sm_{r['arch']}: {why}" for r in audit for why in complaints(r)]
    assert not wrong, "\n".join(wrong)


def table(audit: list[dict[str, Any]]) -> str:
    """One line a kernel: counts of the machine code, then what it costs an element of a row."""
    names = "regs stack spills ldg ldg128 stg stg128 narrow shared"
    lines = ["", " ".join([f"{'kernel':26} arch", *names.split()])]
    for r in audit:
        cells = [f"{r[k]:{len(k)}}" for k in names.split()]
        lines.append(" ".join([f"{r['name']:26} {r['arch']:4}", *cells]))
    counted = [from_dict(r["kernel"]) for r in audit if r["kernel"]]
    return "\n".join([*lines, "", HEAD, *map(line, counted)])


def complaints(r: dict[str, Any]) -> list[str]:
    """What is wrong with one compiled kernel."""
    allowed = max([0, *(most for k, (most, _) in SPILLS.items() if r["name"].startswith(k))])
    checks = {
        f"stack of {r['stack']} bytes": r["stack"] > allowed,
        f"{r['spills']} spills": r["spills"] > 0 and not allowed,
        f"{r['looped']} spills in loops": r["looped"] > LOOPED.get((r["name"], r["arch"]), (0,))[0],
        f"{r['regs']} registers": not 0 < r["regs"] <= REGISTERS,
        # Of the smallest: what is compiled for one architecture must fit on the others as well.
        f"shared memory {r['shared']}": r["shared"] > min(SHARED.values()),
        f"{r['narrow']} accesses of a row under 16 bytes": r["wide"] and r["narrow"] > 0,
        f"{r['ldg128']} loads and {r['stg128']} stores of 16 bytes": r["wide"]
        and not (r["ldg128"] and r["stg128"]),
    }
    return [what for what, bad in checks.items() if bad]


@pytest.mark.slow
def test_costs_of_an_element(audit: list[dict[str, Any]]) -> None:
    """Instructions, exponentials, bytes and bytes in flight stay within their limits."""
    kernels = [from_dict(r["kernel"]) for r in audit if r["kernel"]]
    assert {(k.name, k.arch) for k in kernels} >= machine_limits.launched("triton")
    wrong = [
        f"{k.name} sm_{k.arch}: {why}" for k in kernels for why in machine_limits.complaints(k)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_page_of_predictions_is_up_to_date(audit: list[dict[str, Any]]) -> None:
    kernels = [from_dict(r["kernel"]) for r in audit if r["kernel"]]
    rows = machine_limits.rows_not_on_page(kernels, f"Triton {version('triton')}")
    assert not rows, "\n".join(rows)


@pytest.mark.slow
def test_no_races(audit: list[dict[str, Any]]) -> None:
    """No word is stored by one thread and loaded by another with no barrier between."""
    faults = [f"{r['name']} sm_{r['arch']}: {race}" for r in audit for race in r["races"]]
    assert not faults, "\n".join(faults)
    unseen = [f"{r['name']} sm_{r['arch']}: {op}" for r in audit for op in r["unseen"]]
    assert not unseen, "never reached: " + "\n".join(unseen)


def test_complaints_are_found() -> None:
    fine = {
        "name": "gradient", "arch": 90, "regs": 64, "stack": 0, "spills": 0, "looped": 0,
        "shared": 128, "narrow": 0, "ldg128": 4, "stg128": 4, "wide": True,
    }  # fmt: skip
    assert complaints(fine) == []
    for bad in (
        {"stack": 8}, {"spills": 1}, {"looped": 1}, {"regs": 256}, {"shared": 170_000},
        {"narrow": 1},
        {"ldg128": 0}, {"stg128": 0},
    ):  # fmt: skip
        assert len(complaints(fine | bad)) == 1, bad
