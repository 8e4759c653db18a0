"""Tables of the page that compares other code bases, from made-up rows."""

from __future__ import annotations

from typing import Any

from bench.side_by_side import table
from bench.side_by_side.shims import SHIMS
from bench.side_by_side.systems import ELEUTHER, OURS, PEERS, SYSTEMS


def fake_row(system: str, loss: str, seed: int, **more: Any) -> dict[str, Any]:
    return {
        "name": "agreement", "system": system, "loss": loss, "seed": seed, "steps": 150,
        "batch_size": 32, "micro_batch_size": 8, "n_test": 1000, "lr": 1e-4, "threads": 1,
        "our_transformers": "5", "peer_transformers": "4", "cpu": "a processor", "torch": "2",
        "git_sha": "abc", "load": 0.5 + seed, "accuracy": 0.9 + seed / 100, "agreement": 0.995,
        "loss_gap": 1e-7 * (1 + seed), "probability_gap": 2e-6, "step_ms": 40.0,
        "step_cpu_ms": 39.0, "train_s": 6.0, "process_s": 20.0 + seed, "peak_mib": 500.0,
        "added_mib": 50.0, **more,
    }  # fmt: skip


def test_tables() -> None:
    measured = [
        fake_row(system, loss, seed)
        for seed in (0, 1, 2)
        for system, loss in (("ours", "logconf_openai"), ("openai", "logconf"), ("ours", "xent"),
                             ("openai", "xent"))
    ]  # fmt: skip
    text = table.equality(measured).splitlines()
    assert [line.split(" | ")[1:3] for line in text[2:6]] == [
        ["openai/weak-to-strong", "`xent`"], ["w2s_fast", "`xent`"],
        ["openai/weak-to-strong", "`logconf`"], ["w2s_fast", "`logconf_openai`"],
    ]  # fmt: skip
    assert text[4].endswith(
        "| 0.910 (0.900 – 0.920) | `logconf_openai` | 99.5 % | 3.0e-07 | 2.0e-06 |"
    )
    assert text[5].endswith("| 0.910 (0.900 – 0.920) |  |  |  |  |")
    assert "3 seeds, 150 steps of 32 rows in micro-batches of 8" in text[7]
    assert "1 thread;" in text[7] and "load average 0.5 to 2.5" in text[7]
    times = table.cost(measured).splitlines()
    assert times[2].endswith("| 40.0 | 39.0 | 21.0 (20.0 – 22.0) | 500 | 50 |")
    assert times[-1].endswith(
        "commit abc. The machine was busy: compare CPU times, not wall times."
    )
    quiet = table.cost([{**line, "load": 1.5} for line in measured])
    assert quiet.endswith("commit abc.\n")
    assert "No rows have been recorded" in table.cost([]) == table.equality([])


def test_lines_that_a_user_writes() -> None:
    code = '"""One.\n\nTwo."""\n\n# comment\nimport json\n\n\ndef run(job):\n    """Kept."""\n'
    assert table.written_lines(code) == 3
    text = table.lines()
    for system in SYSTEMS.values():
        assert f"| {system.title} | " in text


def test_every_shim_is_on_the_page() -> None:
    text = table.shims()
    assert set(SHIMS) == set(SYSTEMS) and not SHIMS[OURS]
    for system in PEERS:
        for shim in SHIMS[system.name]:
            assert f"| {system.title} | {shim.what} | {shim.why} |" in text
    assert ELEUTHER.title in text
