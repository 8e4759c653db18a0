"""The benchmark of weak-to-strong reasoning: counts of planted files, and the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.generation_cases import checkpoint

from bench.reasoning import command, released, table
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

pytest.importorskip("math_verify")
N = 12


def write_release(folder: Path, **changes: Any) -> None:
    """Plant 12 items: 8 selected, of which 2 differ as strings and 1 has no answer; 5 pairs."""
    prompts = [f"Question: q{i}?\nAnswer:" for i in range(N)]
    weak = [f"weak\n#### {i}" for i in range(N)]
    weak[7] = "weak"
    icl = [f"icl\n#### {i}" for i in range(N)]
    icl[2], icl[3], icl[7] = "icl\n#### 2.00", "icl\n#### 1+2=3", "icl"
    rows = lambda texts, n: [  # noqa: E731
        {"id": i, "content": prompts[i], "output": texts[i]} for i in range(n)
    ]
    files: dict[str, Any] = {"full_weak": rows(weak, N)}
    for iteration in (1, 2):
        files[f"iter{iteration}_weak"], files[f"iter{iteration}_icl"] = rows(weak, 8), rows(icl, 8)
        files[f"iter{iteration}_hybrid"] = rows(icl, 8) + rows(weak, 8)
    sides = [
        ("weak\n#### 0", "x\n#### 9"),
        ("x\n#### 9", "weak\n#### 1"),
        ("x\n#### 9", "weak\n#### 2"),
        ("weak\n#### 3", "x\n#### 3.0"),
        ("weak\n#### 4", "x"),
    ]
    files["iter2_hybrid_paired"] = [
        {"id": i, "instruction": prompts[i], "input": "", "output": list(pair)}
        for i, pair in enumerate(sides)
    ]
    (folder / "gair_gsm8k").mkdir(parents=True)
    for name, content in (files | changes).items():
        (folder / "gair_gsm8k" / f"{name}.json").write_text(json.dumps(content))
    (folder / "gsm8k").mkdir()
    for name, known in (("train", range(6)), ("test", range(6, 8))):
        lines = [{"question": f"q{i}?", "answer": f"so\n#### {i + (i == 1)}"} for i in known]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "gsm8k" / f"{name}.jsonl").write_text(text)


def test_planted_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_release(tmp_path)
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(released, "EXPECTED", {"pairs": 5, "iteration 1: items": 8})
    assert command.main(["--data", str(tmp_path), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    by_name = {row["name"]: row for row in rows}
    counts = {name: row["n"] for name, row in by_name.items() if row["kind"] == "count"}
    assert counts["weak solutions"] == N and counts["iteration 1: items"] == 8
    assert counts["iteration 1: weak texts that are in the full set"] == 8
    assert counts["iteration 1: equal answers"] == 7 == counts["iteration 2: equal answers"]
    assert by_name["iteration 1: no readable answer"]["ids"] == [7]
    differing = by_name["iteration 1: answers that differ as strings"]
    assert differing["answers"] == [[2, "2", "2.00"], [3, "3", "1+2=3"]]
    assert counts["iteration 2: hybrid is the multiset union"] == 1
    assert counts["pairs: the weak text is chosen"] == 3
    assert counts["pairs: the weak text is rejected"] == 2
    assert by_name["pairs: equal answers"]["ids"] == [3]
    assert by_name["pairs: unreadable rejected"]["ids"] == [4]
    full = by_name["full_weak"]
    assert (full["n_rows"], full["n_rows_with_gold"], full["n_unreadable"]) == (N, 8, 1)
    assert full["accuracy"] == 6 / 8, "item 1 is wrong, item 7 has no answer"
    assert full["low"] == pytest.approx(0.4093, abs=1e-4)  # Wilson for 6 of 8
    assert full["high"] == pytest.approx(0.9285, abs=1e-4)
    hybrid, weak = by_name["iter1_hybrid"], by_name["iter1_weak"]
    assert hybrid["n_rows_with_gold"] == 16 and hybrid["low"] == weak["low"]
    assert by_name["iter2_hybrid_paired, rejected"]["accuracy"] == 2 / 5
    text = table.counts(rows)
    assert "| pairs | 5 | 5 |  |" in text and "multiset union | yes | yes |" in text
    assert "| iteration 1: no readable answer | 1 |  | 7 |" in text
    assert "| 3 | `3` | `1+2=3` |" in table.strings(rows)
    assert "| full_weak | 12 | 8 | 0.750 | 0.409 – 0.929 | 1 |" in table.accuracies(rows)
    assert "No rows have been recorded" in table.sampling(rows)


def test_a_count_that_differs_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_release(tmp_path, iter2_hybrid=[])
    monkeypatch.setattr(released, "EXPECTED", {"iteration 2: hybrid is the multiset union": 1})
    monkeypatch.setattr(released, "_accuracies", lambda *_: iter(()))
    assert command.main(["--data", str(tmp_path)]) == 1
    assert "iteration 2: hybrid is the multiset union: 0, expected 1" in capsys.readouterr().err


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert "nothing to do; give --data, --model or --run" in capsys.readouterr().err
    assert command.main(["--data", str(tmp_path)]) == 2
    assert "full_weak.json: FileNotFoundError" in capsys.readouterr().err
    write_release(tmp_path, full_weak=[{"id": "a", "output": ""}])
    assert command.main(["--data", str(tmp_path)]) == 2
    assert "a row without id or output; expected a file of the release" in capsys.readouterr().err


@pytest.mark.slow
def test_speed_of_a_small_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint("llama", tmp_path / "lm", agreement_tokenizer())
    assert command.main(["--model", str(folder), "--quick", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    assert [row["kind"] for row in rows] == ["speed"] * 3 and rows[0]["ratio"] == 1
    assert all(row["tokens_per_cpu_s"] > 0 for row in rows)
    text = table.sampling([{**row, "threads": 1, "cpu": "x", "git_sha": "y"} for row in rows])
    assert "| loop, one sample a call | " in text and "2 prompts, 2 samples each" in text
