"""The Python versions that the package allows are those that its pinned requirements allow."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata

import pytest
from helpers.paths import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOWEST = PROJECT["project"]["requires-python"].removeprefix(">=")
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def _installed(pin: Requirement) -> SpecifierSet | None:
    """Python versions of the pinned distribution, None if this environment has another one."""
    try:
        facts = metadata(pin.name)
    except PackageNotFoundError:
        return None
    if not pin.specifier.contains(Version(facts["Version"]).public):
        return None
    return SpecifierSet(facts["Requires-Python"] or "")


@pytest.mark.parametrize("pin", PINS, ids=lambda pin: pin.name)
def test_a_pin_installs_on_the_lowest_python(pin: Requirement) -> None:
    versions = _installed(pin)
    if versions is None:
        pytest.skip("not installed in this version")
    assert versions.contains(f"{LOWEST}.0"), f"{pin} needs Python {versions}"


def test_most_pins_are_checked_and_some_need_the_lowest_python() -> None:
    """Else the bound could be lower."""
    versions = [v for pin in PINS if (v := _installed(pin)) is not None]
    major, minor = LOWEST.split(".")
    before = f"{major}.{int(minor) - 1}.99"
    assert len(versions) > len(PINS) / 2
    assert not all(v.contains(before) for v in versions)


def test_every_file_says_the_same() -> None:
    assert sys.version_info >= tuple(map(int, LOWEST.split(".")))
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{LOWEST.replace('.', '')}"
    assert PROJECT["tool"]["mypy"]["python_version"] == LOWEST
    for name in ("README.md", "docs/quick_start.md"):
        said = set(re.findall(r"Python (3\.\d+)", (ROOT / name).read_text()))
        assert said == {LOWEST}, name
    assert f"python{LOWEST}" in (ROOT / "Makefile").read_text()
