"""Arrange students made of the weights of others for reading; results of 0.2.0 have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from w2s_fast.report.model_rows import format_number

SWEEP_HEADS = ("student", "seed", "alpha", "agreement, held out", "test accuracy", "taken")


def merge_lines(results: Mapping[str, Any]) -> list[str]:
    """Return a line for every student that is a soup or an interpolation."""
    return [f"{r['name']}, seed {r['seed']}: {_text(r)}" for r in results.get("merged", ())]


def _text(row: Mapping[str, Any]) -> str:
    if row["how"] == "interpolation":
        agreement = dict(zip(row["alphas"], row["agreement"], strict=True))
        return (
            f"alpha {row['alpha']:.3g} agrees best with the {row['held_out']} held-out weak labels "
            f"({agreement[row['alpha']]:.3f}; {row['agreement'][0]:.3f} before and "
            f"{row['agreement'][-1]:.3f} after the training)"
        )
    if "agreement" not in row:
        return f"the mean of the weights of {row['members']} students"
    alone = [row["member_agreement"][i] for i in row["chosen"]]
    return (
        f"the mean of the weights of {len(row['chosen'])} of {row['members']} students, which "
        f"agrees with {row['agreement']:.3f} of the held-out weak labels; alone they agree with "
        f"{', '.join(f'{a:.3f}' for a in alone)}"
    )


def sweep_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of ``SWEEP_HEADS`` for every coefficient of every interpolated student."""
    return [
        [
            row["name"],
            str(row["seed"]),
            f"{alpha:.3g}",
            format_number(row["agreement"][i]),
            format_number(None if row["accuracy"] is None else row["accuracy"][i]),
            "yes" if alpha == row["alpha"] else "",
        ]
        for row in results.get("merged", ())
        if row["how"] == "interpolation"
        for i, alpha in enumerate(row["alphas"])
    ]
