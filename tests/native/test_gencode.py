"""Architectures for which the build compiles the CUDA kernels."""

from __future__ import annotations

import runpy
from collections.abc import Callable

import pytest
import setuptools
from helpers.paths import ROOT


@pytest.fixture
def gencode(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    found: Callable[[], list[str]] = runpy.run_path(str(ROOT / "setup.py"))["gencode"]
    return found


OURS = [
    "-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_80,code=compute_80",
    "-gencode=arch=compute_90,code=sm_90", "-gencode=arch=compute_100,code=sm_100",
]  # fmt: skip


@pytest.mark.parametrize(
    ("listed", "flags"),
    [
        (None, OURS),
        ("", OURS),
        ("9.0", ["-gencode=arch=compute_90,code=sm_90"]),
        ("7.5 8.6;9.0a", [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ("86", "90a")]),
        ("7.5 10.0+PTX", OURS[3:] + ["-gencode=arch=compute_100,code=compute_100"]),
    ],
)
def test_listed_architectures(
    gencode: Callable[[], list[str]],
    listed: str | None,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if listed is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert gencode() == flags


@pytest.mark.parametrize(
    ("listed", "message"),
    [("Hopper", "has 'Hopper'; expected numbers as in"), ("7.5", "no architecture from 8.0 on")],
)
def test_lists_that_do_not_serve(
    gencode: Callable[[], list[str]],
    listed: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    with pytest.raises(RuntimeError, match=message):
        gencode()
