"""docs/architectures.md is current and without faults, and its check detects faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ranks

from bench.architectures import command, support_page
from bench.architectures.check import CRASHED, EXACT, REFUSED, UNBUILT, WRONG, check
from w2s_fast.integrations.patching.lazy_logits import LazyLogits
from w2s_fast.integrations.patching.logit_transform import LogitTransform
from w2s_fast.integrations.patching.loss_call import LossCall

# One of each kind: bias, scale, soft-cap, mixture, state space, unshifted, sliced, two towers.
QUICK = (
    "LlamaForCausalLM", "PhiForCausalLM", "CohereForCausalLM", "Gemma2ForCausalLM",
    "RecurrentGemmaForCausalLM", "Qwen3MoeForCausalLM", "GptOssForCausalLM", "MambaForCausalLM",
    "XLMWithLMHeadModel", "InklingForCausalLM", "Gemma4ForConditionalGeneration",
    "MarianMTModel", "SwitchTransformersForConditionalGeneration",
)  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_exact(name: str) -> None:
    for dtype, outcome in check(name).items():
        assert outcome.state == EXACT, (dtype, outcome)


def test_refused_and_not_built() -> None:
    assert {o.state for o in check("ProphetNetForCausalLM").values()} == {REFUSED}
    missing = check("NoSuchModel")["fp32"]
    assert missing.state == UNBUILT and "has no NoSuchModel" in missing.why


def test_a_lost_soft_cap_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = LazyLogits.transform
    monkeypatch.setattr(
        LazyLogits,
        "transform",
        lambda self: LogitTransform(0.0, transform(self).scale, transform(self).bias),
    )
    monkeypatch.setattr(
        "w2s_fast.integrations.patching.verify._raise_difference", lambda *args: None
    )
    assert {o.state for o in check("Gemma2ForCausalLM").values()} == {WRONG}


def test_a_lost_router_loss_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    run = architectures_run()

    def alone(lm: Any, given: dict[str, Any], call: LossCall) -> Any:
        out = run(lm, given, call)
        if type(call) is LossCall:
            out.loss = call.loss
        return out

    monkeypatch.setattr("w2s_fast.integrations.patching.forward.run_forward", alone)
    for outcome in check("MixtralForCausalLM").values():
        assert outcome.state == WRONG and "router loss" in outcome.why


def architectures_run() -> Any:
    from w2s_fast.integrations.patching import forward

    return forward.run_forward


def test_a_crash_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: Any) -> torch.Tensor:
        raise KeyError("hidden")

    monkeypatch.setattr(LossCall, "_own_rows", crash)
    for outcome in check("LlamaForCausalLM").values():
        assert outcome.state == CRASHED and "KeyError" in outcome.why


def test_a_process_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def process(names: list[str]) -> tuple[list[dict[str, str]], str]:
        done = names[: names.index("BambaForCausalLM")] if "BambaForCausalLM" in names else names
        rows = [{"class": n, "fp32": "exact", "bf16": "exact"} for n in done]
        return rows, "its process ended with -11"

    monkeypatch.setattr(command, "_in_process", process)
    rows = {row["class"]: row for row in command.check_all()}
    assert rows["BambaForCausalLM"]["fp32"] == "crashed" and "-11" in str(rows["BambaForCausalLM"])
    assert [n for n, row in rows.items() if command.is_fault(row)] == ["BambaForCausalLM"]
    assert len(rows) > 300


@pytest.mark.slow
def test_some_classes_from_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    before = support_page.PAGE.read_text()
    assert command.main(["--only", "GPT2LMHeadModel"]) == 0
    assert '"fp32": "exact"' in capfd.readouterr().out
    assert support_page.PAGE.read_text() == before


def test_rows() -> None:
    rows = support_page.load()
    assert not [row for row in rows if command.is_fault(row)]
    exact = [row for row in rows if row["fp32"] == "exact"]
    causal = [row for row in exact if row["group"] == "causal"]
    assert len(causal) >= 119 and len(exact) - len(causal) >= 45
    assert sum(row["fp32"] == UNBUILT for row in rows) <= 30
    # In bf16 nothing else: only where the model's own forward cannot do it.
    assert all(row["bf16"] in (EXACT, UNBUILT) for row in exact)


def test_document_is_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--check"]) == 0
    page = tmp_path / "architectures.md"
    page.write_text(support_page.PAGE.read_text().replace("| 0 |", "| 1 |", 1))
    monkeypatch.setattr(command, "PAGE", page)
    assert command.main(["--check"]) == 1
    assert "differs from its rows" in capsys.readouterr().out


@ranks.minutes
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_class() -> None:
    """Outcomes equal the rows for their version of transformers; no version has a fault."""
    import transformers

    rows = list(command.check_all())
    assert not [row for row in rows if command.is_fault(row)]
    recorded = support_page.load()
    if recorded[0]["transformers"] == transformers.__version__:
        states = [[(r["class"], r["fp32"], r["bf16"]) for r in one] for one in (rows, recorded)]
        assert states[0] == states[1]
