"""Lines on what methods made of the items of a generation task."""

from __future__ import annotations

from w2s_fast.report.label_rows import label_lines


def test_counts_are_summed_over_runs_and_ids_are_counted() -> None:
    reports = [
        {"set": "weak", "agreement": {"kept": ["a", "b"], "n_unreadable_samples": 3}, "share": 0.5},
        {"set": "weak", "agreement": {"kept": ["c"], "n_unreadable_samples": 0}, "share": 0.25},
    ]
    rows = [
        {"seed": seed, "name": "m+xent", "stage": f"text_labels/{seed}/m+xent/1", "report": report}
        for seed, report in zip((0, 1), reports, strict=True)
    ]
    truncated = {"seed": 1, "name": "m+xent", "stage": "student/1/m+xent", "report": {"pairs": 4}}
    lines = label_lines({"text_labels": [*rows, truncated]})
    assert len(lines) == 2
    assert all(
        part in lines[0]
        for part in (
            "set weak",
            "3 agreement: kept",
            "3 agreement: unreadable samples",
            "0.750 share",
        )
    )
    assert lines[1].endswith("4 pairs")


def test_results_without_texts_have_no_lines() -> None:
    assert label_lines({}) == [] == label_lines({"text_labels": []})
