"""Check the parts of results.json that the page alone shows; results of 0.2.0 have none of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from w2s_fast.report.shapes import shape_problems

_CURVES = ("loss", "agreement", "threshold", "coefficient")
_CALIBRATION = {"ece": float, "ece_noise": float, "n": [int], "confidence": [float],
                "accuracy": [float]}  # fmt: skip
_TRAINING = [{"seed": int, "name": str, "steps": int, "at": [int]}]
_SPLIT = {"n": int, "accuracy": float, "calibration": dict | None}
_CARD = {
    "seed": int, "transfer": _SPLIT, "test": _SPLIT, "classes": [str], "balance": dict | None,
    "confusion": list | None, "confused": list | None, "probe": {"reason": str | None},
    "agreement": dict | None,
    "cost": {"stages": [str], "parameters": int | None, "steps": int | None, "tokens": int | None},
}  # fmt: skip
_PROBE = {"features": str, "accuracy": float, "base_rate": float, "auroc": float,
          "auroc_interval": [float], "learnable": bool}  # fmt: skip
_BALANCE = {"true": [int], "weak": [int]}
_AGREEMENT = {"names": [str], "omitted": int, "share": [[float | None]]}


def page_part_problems(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with calibration, training curves and supervisor cards."""
    for i, row in enumerate(results["summary"]):
        if row.get("calibration") is None:
            continue
        where = f"summary[{i}].calibration"
        models = dict.fromkeys(("weak", "student", "ceiling"), dict | None)
        yield from (found := list(shape_problems(row["calibration"], models, where)))
        for model in () if found else models:
            yield from _calibration(row["calibration"][model], f"{where}.{model}")
    if "training" in results:
        yield from _training(results["training"])
    if "supervisor_cards" in results:
        yield from _cards(results["supervisor_cards"])


def _calibration(record: Any, where: str) -> Iterator[str]:
    if record is None:
        return
    if found := list(shape_problems(record, _CALIBRATION, where)):
        yield from found
    elif len({len(record[k]) for k in ("n", "confidence", "accuracy")}) > 1 or not record["n"]:
        yield f"{where} has bins of different numbers, or none"
    elif min(record["n"]) < 1:
        yield f"{where} has an empty bin"


def _training(rows: Any) -> Iterator[str]:
    if found := list(shape_problems(rows, _TRAINING, "training")):
        yield from found
        return
    for i, row in enumerate(rows):
        for name in _CURVES:
            where = f"training[{i}].{name}"
            curve = row.get(name, [])
            yield from (found := list(shape_problems(curve, [float | None], where)))
            if not found and curve and len(curve) != len(row["at"]):
                yield f"{where} has {len(curve)} points, expected {len(row['at'])}"


def _cards(cards: Any) -> Iterator[str]:
    if found := list(shape_problems(cards, [_CARD], "supervisor_cards")):
        yield from found
        return
    for i, card in enumerate(cards):
        where, n = f"supervisor_cards[{i}]", len(card["classes"])
        for split in ("transfer", "test"):
            yield from _calibration(card[split]["calibration"], f"{where}.{split}.calibration")
        if card["transfer"]["n"] < 1:
            yield f"{where}.transfer.n is below 1"
        if card["probe"]["reason"] is None:
            yield from _probe(card["probe"], f"{where}.probe")
        yield from _counts(card, n, where)
        if card["agreement"] is not None:
            yield from _agreement(card["agreement"], f"{where}.agreement")


def _probe(probe: Mapping[str, Any], where: str) -> Iterator[str]:
    if found := list(shape_problems(probe, _PROBE, where)):
        yield from found
    elif len(probe["auroc_interval"]) != 2:
        yield f"{where}.auroc_interval has {len(probe['auroc_interval'])} ends, expected 2"


def _counts(card: Mapping[str, Any], n: int, where: str) -> Iterator[str]:
    """Yield what does not fit the number of classes."""
    if card["balance"] is not None:
        if found := list(shape_problems(card["balance"], _BALANCE, f"{where}.balance")):
            yield from found
        elif any(len(card["balance"][key]) != n for key in _BALANCE):
            yield f"{where}.balance is not of {n} classes"
    if card["confusion"] is not None:
        if found := list(shape_problems(card["confusion"], [[int]], f"{where}.confusion")):
            yield from found
        elif (
            not _is_square(card["confusion"], n) or min(map(min, card["confusion"]), default=0) < 0
        ):
            yield f"{where}.confusion is no matrix of {n} classes"
    if card["confused"] is not None:
        if found := list(shape_problems(card["confused"], [[int]], f"{where}.confused")):
            yield from found
        elif any(len(p) != 3 or not all(0 <= c < n for c in p[:2]) for p in card["confused"]):
            yield f"{where}.confused is not of pairs of {n} classes"


def _agreement(record: Mapping[str, Any], where: str) -> Iterator[str]:
    if found := list(shape_problems(record, _AGREEMENT, where)):
        yield from found
    elif not _is_square(record["share"], len(record["names"])):
        yield f"{where}.share is no matrix of {len(record['names'])} supervisors"


def _is_square(rows: list[list[Any]], n: int) -> bool:
    return len(rows) == n and all(len(row) == n for row in rows)
