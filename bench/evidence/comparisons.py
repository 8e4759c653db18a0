"""Compare the students of a group: one data set and one supervisor under one protocol.

Accuracies are compared at the seeds at which every method of the group has a row. Differences are
paired by seed, with a t interval over seeds and Holm's correction for the methods of the group.
A method that could not run at one of its seeds is not compared: the others would be an easier
selection. The group names it instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.evidence.design import PROTOCOLS, SETS, SUPERVISORS, report_name
from w2s_fast import metrics
from w2s_fast.pipeline import statistics

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Student:
    """A method of a group, over its seeds.

    Attributes:
        name: Method and loss, as in reports.
        accuracy: Mean accuracy on the test items.
        agreement: Mean agreement with the weak model: where it is right, and where it is wrong.
        pgr: As ``statistics.pgr_over_runs``; None of a single seed.
        difference: As ``statistics.difference_rows``; None of the baseline.
        gold: Uses of true labels that reports name.
    """

    name: str
    accuracy: float
    agreement: tuple[float, float]
    pgr: Mapping[str, Any] | None
    difference: Mapping[str, Any] | None
    gold: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """A method that could not run on the data of a group.

    Attributes:
        name: Method and loss, as in reports.
        n_seeds: At how many seeds.
        reason: Its message at the first of them.
    """

    name: str
    n_seeds: int
    reason: str


@dataclass(frozen=True)
class Group:
    """The students of one set and supervisor under one protocol.

    Attributes:
        protocol, data, supervisor: Which.
        seeds: Seeds that all of its methods have.
        weak, ceiling: Mean accuracies of the weak model and of the baseline's ceiling.
        students: In the order of the protocol; the first is the baseline.
        failures: Methods that are not compared.
    """

    protocol: str
    data: str
    supervisor: str
    seeds: tuple[int, ...]
    weak: float
    ceiling: float
    students: tuple[Student, ...]
    failures: tuple[Failure, ...]

    @property
    def baseline(self) -> Student:
        """Plain cross-entropy."""
        return self.students[0]

    @property
    def complete(self) -> bool:
        """Whether no cell is open."""
        protocol = PROTOCOLS[self.protocol]
        n_methods = len(self.students) + len(self.failures)
        return self.seeds == protocol.seeds and n_methods == len(protocol.methods)


def groups(rows: Sequence[Row]) -> list[Group]:
    """Return the groups that have a seed with all of their methods."""
    found = (
        make_group(rows, protocol, data, supervisor)
        for protocol in PROTOCOLS
        for data in SETS
        for supervisor in SUPERVISORS
    )
    return [group for group in found if group is not None]


def make_group(rows: Sequence[Row], protocol: str, data: str, supervisor: str) -> Group | None:
    """Return a group, or None without a seed that all of its methods have."""
    place = (protocol, data, supervisor)
    own = [r for r in rows if (r["protocol"], r["data"], r["supervisor"]) == place]
    by_spec: dict[str, dict[int, Row]] = {
        spec: {r["seed"]: r for r in own if r["spec"] == spec}
        for spec in PROTOCOLS[protocol].methods
    }
    failures = {
        spec: failure for spec, by_seed in by_spec.items() if (failure := _failure(spec, by_seed))
    }
    by_spec = {s: by_seed for s, by_seed in by_spec.items() if by_seed and s not in failures}
    if PROTOCOLS[protocol].methods[0] not in by_spec:
        return None
    seeds = tuple(sorted(set.intersection(*(set(by_seed) for by_seed in by_spec.values()))))
    if not seeds:
        return None
    columns = {spec: [by_seed[s] for s in seeds] for spec, by_seed in by_spec.items()}
    first = next(iter(columns.values()))
    means = _mean(first, "weak"), _mean(first, "ceiling")
    return Group(*place, seeds, *means, _students(columns), tuple(failures.values()))


def _failure(spec: str, by_seed: Mapping[int, Row]) -> Failure | None:
    reasons = [row["failed"] for _, row in sorted(by_seed.items()) if "failed" in row]
    return Failure(report_name(spec), len(reasons), reasons[0]) if reasons else None


def _students(columns: Mapping[str, Sequence[Row]]) -> tuple[Student, ...]:
    baseline, *others = columns
    differences = {
        spec: metrics.paired_difference(
            metrics.Runs(_accuracies(zip(columns[spec], columns[baseline], strict=True)))
        )
        for spec in others
    }
    compared = {d["name"]: d for d in statistics.difference_rows(differences, baseline)}
    return tuple(
        Student(
            rows[0]["name"],
            _mean(rows, "student"),
            (_agreement(rows, "weak_right"), _agreement(rows, "weak_wrong")),
            _pgr(rows),
            compared.get(spec),
            tuple(dict.fromkeys(use for row in rows for use in row["gold"])),
        )
        for spec, rows in columns.items()
    )


def _accuracies(pairs: Any) -> np.ndarray:
    return np.array([[[one["student"], other["student"]] for one, other in pairs]])


def _pgr(rows: Sequence[Row]) -> Mapping[str, Any] | None:
    if len(rows) < 2:
        return None
    accuracy = np.array([[[r["weak"], r["student"], r["ceiling"]] for r in rows]])
    return statistics.pgr_over_runs(metrics.Runs(accuracy), n_items=rows[0]["n_test"])


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _agreement(rows: Sequence[Row], part: str) -> float:
    return float(np.mean([row["agreement"][part] for row in rows]))
