"""Batch thresholds over dense labels on the CPU: gates guessed from a sample change no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from w2s_fast.ops import dispatch
from w2s_fast.ops.cross_entropy import algorithm, cpp
from w2s_fast.ops.loss_call import RowCall
from w2s_fast.testing import assert_cross_entropy, run_cross_entropy

N, V = 700, 19
STEP = 21  # every so many rows one is in the sample

pytestmark = pytest.mark.skipif(
    bool(dispatch.missing("cpp")), reason=f"backend cpp is missing: {dispatch.missing('cpp')}"
)


def rows(case: str) -> dict[str, Any]:
    """A call whose sample is a fair one, or misjudges rows in every way."""
    g = torch.Generator().manual_seed(1)
    z = torch.randn(N, V, generator=g) * 2
    weak = torch.randn(N, V, generator=g).softmax(1)
    weight = 0.5 + torch.rand(N, generator=g)
    weight[3::7] = 0.0
    if case == "sure sample":  # its median lies above all others: most gates are guessed closed
        z[::STEP] *= 50.0
    elif case == "empty sample":
        weight[::STEP] = 0.0
    elif case == "NaN sample":
        z[STEP] = float("nan")
    elif case == "NaN elsewhere":
        z[STEP + 1] = float("nan")
    elif case == "ties":
        z = z.sign()
    call = {"logits": z, "weak": weak, "weight": weight, "rule": "median", "aux": 0.4}
    return call | ({"smoothing": 0.1} if case == "smoothing" else {})


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every pass."""
    sizes: list[int] = []
    run = cpp.rows

    def counted(call: RowCall) -> None:
        sizes.append(call.inputs.logits.shape[0])
        run(call)

    monkeypatch.setattr(cpp, "rows", counted)
    return sizes


# Case -> whether all rows, some or none are passed again.
CASES = {
    "fair": "some",
    "smoothing": "some",
    "ties": "none",
    "sure sample": "all",
    "empty sample": "all",
    "NaN sample": "none",  # no gate is open, by the sample and by the batch
    "NaN elsewhere": "all",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_guess_changes_no_bit(
    case: str, dtype: torch.dtype, passed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = rows(case)
    call["logits"] = call["logits"].to(dtype)
    results: list[list[Tensor]] = []
    for least in (algorithm._LEAST_GUESSED, N + 1):
        monkeypatch.setattr(algorithm, "_LEAST_GUESSED", least)
        out, grad, grad_weight = run_cross_entropy("cpp", call)
        assert out.stats is not None and grad_weight is not None
        s = out.stats
        assert s.threshold is not None
        found = [out.loss, grad, grad_weight, s.loss, s.coefficient, s.threshold, s.entropy]
        results.append([x.detach().nan_to_num(7.0) for x in [*found, s.argmax, s.hard_class]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    sample = -(-N // STEP)
    assert passed[:2] == [sample, N] and passed[-1] == N  # the last: without a guess
    again = {"none": not passed[2:-1], "all": passed[2:-1] == [N]}
    some = len(passed) == 4 and 0 < passed[2] <= N // 8
    assert again.get(CASES[case], some), passed


def test_guess_matches_fp64() -> None:
    assert_cross_entropy("cpp", rows("fair"), upstream=0.5)


def test_in_place_takes_the_long_way(passed: list[int]) -> None:
    """Logits that the gradient overwrites cannot be passed again."""
    out, grad, _ = run_cross_entropy("cpp", rows("fair") | {"inplace": True})
    assert passed == [N]
    again, other, _ = run_cross_entropy("cpp", rows("fair"))
    assert torch.equal(out.loss, again.loss) and torch.equal(grad, other)
