"""What every method must satisfy, driven by the table of methods."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from w2s_fast.errors import W2SError
from w2s_fast.methods import (
    METHODS,
    Method,
    Node,
    PairLabels,
    Plan,
    Prompts,
    Targets,
    TextLabels,
    make_method,
    make_steps,
    spec_of,
    student_nodes,
)
from w2s_fast.pipeline.job_identity import VERSIONS

N = 60
PLAN = Plan(intermediate_models=2)
# Specs that use true labels of the transfer set, and for what; all others use none.
GOLD = {
    "ground_truth_early_stop": ("early stopping on true labels",),
    "explicit_conflict": ("explicit conflict: a simulated objective against the true labels",),
}
# Specs that use other true labels beside training weak models.
WEAK_GOLD = (
    dict.fromkeys(
        ("trust", "selective", "trust:mode=filter,share=0.3", "selective:alpha=0,calibrate=none"),
        ("true labels of the weak split train P(label right)",),
    )
    | dict.fromkeys(
        (
            "agreement_sft",
            "agreement_sft:sets=weak,iterations=3,rule=string",
            "agreement_sft:sets=in_context|contrast:loss=orpo,rule=number",
        ),
        ("true labels of the weak split are shown as examples in prompts",),
    )
    | {
        "ensem_w2s": ("true labels of the weak split weight the votes of weak models",),
        "implicit_conflict": ("implicit conflict: true labels of the pairs of task.conflict_path",),
    }
)
# Settings beside the defaults whose plans differ from the default's.
VARIANTS = (
    "probe_relabel:probe=logreg,layer=last",
    "probe_relabel:probe=topo",
    "probe_filter:probe=logreg",
    "elicit:calibrate=none",
    "ccs:direction=crc,calibrate=weak",
    "consistent:start=answers,sweeps=2",
    "posterior:source=ccs,balance=em",
    "strong_to_strong:rounds=0",
    "probe_filter|elicit|consistent",
    "strong_to_strong:rounds=3,stop=agreement",
    "small_loss|strong_to_strong|confident|strong_to_strong",
    "bayesian:members=2,weigh=false",
    "trust:mode=filter,share=0.3",
    "selective:alpha=0,calibrate=none",
    "agreement_sft:sets=weak,iterations=3,rule=string",
    "agreement_sft:sets=in_context|contrast:loss=orpo,rule=number",
)
SPECS = (*METHODS, *VARIANTS)


def _walk(*roots: Node) -> Iterator[Node]:
    """Every node of a plan once, what goes in before what comes out."""
    seen: set[Node] = set()

    def visit(node: Node) -> Iterator[Node]:
        if node not in seen:
            seen.add(node)
            for _, need in node.needs:
                yield from visit(need)
            yield node

    for root in roots:
        yield from visit(root)


def _nodes(spec: str) -> tuple[Node, ...]:
    return tuple(_walk(*student_nodes(make_steps(spec), PLAN)))


def _given(node: Node) -> Any:
    """What a stage could have given: two classes, clusters, labels right in 8 of 10 rows."""
    rng = np.random.default_rng(zlib.crc32(repr((node.stage, node.settings)).encode()))
    gold = np.arange(N) % 2
    if node.stage == "features":
        centres = (2 * gold - 1)[:, None] * np.linspace(1, 0, 8)
        word = dict(node.settings)["word"]
        sign = -1 if word == 0 else 1
        return (sign * centres + 0.3 * rng.normal(size=(N, 8))).astype(np.float32)
    if node.stage == "balance":
        return np.array([0.5, 0.5])
    if node.stage == "trust":
        return rng.random(N).astype(np.float32)
    if node.stage == "boosting":
        return rng.random(1).astype(np.float32)
    shape = (5, N) if node.stage == "trajectory" else (N,)
    right = np.broadcast_to(gold, shape) ^ (rng.random(shape) < 0.2)
    one = np.where(right == 1, 0.8, 0.2) + 0.1 * rng.random(shape)
    probs = np.stack([1 - one, one], -1).astype(np.float32)
    return probs if node.stage == "trajectory" else Targets(probs)


def _arrays(value: Any) -> list[np.ndarray]:
    if isinstance(value, Targets):
        return [value.probs] if value.weight is None else [value.probs, value.weight]
    return [value]


def _same(a: Any, b: Any) -> bool:
    left, right = _arrays(a), _arrays(b)
    return len(left) == len(right) and all(
        np.array_equal(x, y) for x, y in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("name", METHODS)
def test_spec_builds_an_equal_object(name: str) -> None:
    method = make_method(name)
    assert type(method) is METHODS[name] and method == METHODS[name]()
    assert make_method(spec_of(method)) == method
    assert METHODS[name].__doc__ and METHODS[name].__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize("spec", VARIANTS)
def test_settings_survive_the_spec(spec: str) -> None:
    for method in make_steps(spec):
        assert make_method(spec_of(method)) == method


@pytest.mark.parametrize("name", METHODS)
def test_unknown_fields_are_refused(name: str) -> None:
    with pytest.raises(W2SError, match="has no field 'nonsense'"):
        make_method(f"{name}:nonsense=1")


FIELDS = [(name, f.name) for name, kind in METHODS.items() for f in fields(kind)]


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=lambda x: x)
def test_values_out_of_range_are_refused(name: str, field: str) -> None:
    """Before anything is computed, in one line that names the field."""
    default = getattr(METHODS[name](), field)
    if isinstance(default, bool):
        wrong = ["maybe"]
    elif isinstance(default, str):
        wrong = ["nonsense"]
    else:
        wrong = ["-1000000000", "much"] + (["nan"] if isinstance(default, float) else [])
    for value in wrong:
        with pytest.raises(W2SError, match=field) as caught:
            make_method(f"{name}:{field}={value}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", SPECS)
def test_plan_is_of_known_stages(spec: str) -> None:
    nodes = _nodes(spec)
    assert {n.stage for n in nodes} <= set(VERSIONS)
    assert nodes == _nodes(spec)  # no state, no chance
    for node in nodes:
        assert hash(node) is not None
        if node.stage == "apply":
            settings = dict(node.settings)
            assert callable(getattr(make_method(settings["method"]), settings["function"]))


@pytest.mark.parametrize("spec", SPECS)
def test_plan_uses_no_true_label_it_did_not_name(spec: str) -> None:
    student, ceiling = student_nodes(make_steps(spec), PLAN)
    gold = tuple(dict.fromkeys(use for node in _walk(student) for use in node.gold))
    assert gold == GOLD.get(spec, ())
    weak_gold = tuple(dict.fromkeys(use for node in _walk(student) for use in node.weak_gold))
    assert weak_gold == WEAK_GOLD.get(spec, ())
    assert "ceiling" not in {node.stage for node in _walk(student)}


@pytest.mark.parametrize("spec", SPECS)
def test_functions_are_pure(spec: str) -> None:
    """Same inputs, same outputs; inputs stay as they were; the seed is all the chance there is."""
    results: dict[Node, Any] = {}
    for node in _nodes(spec):
        if node.stage != "apply":
            results[node] = _given(node)
            continue
        settings = dict(node.settings)
        function = getattr(make_method(settings["method"]), settings["function"])
        inputs = {name: results[need] for name, need in node.needs}
        before = copy.deepcopy(inputs)
        np.random.seed(0)
        out = function(**inputs, seed=7)
        np.random.seed(1)
        again = function(**inputs, seed=7)
        assert _same(out, again)
        assert all(_same(inputs[name], before[name]) for name in inputs)
        _check_targets(out)
        results[node] = out


@pytest.mark.parametrize("spec", SPECS)
def test_functions_of_texts_are_pure(spec: str, tmp_path: Path) -> None:
    """As above, and every row names an item."""
    prompts = Prompts([f"item {i}" for i in range(N)], [f"{i} + 1 =" for i in range(N)])
    if spec == "tree_pairs":  # without files it has nothing to read
        spec = f"tree_pairs:files={_trees(tmp_path / 'trees.jsonl', prompts)}"
    for node in _nodes(spec):
        if node.stage != "text_labels":
            continue
        settings = dict(node.settings)
        function = getattr(make_method(settings["method"]), settings["function"])
        inputs = {name: _texts(need) for name, need in node.needs}
        before = copy.deepcopy(inputs)
        out, again = (function(prompts=prompts, **inputs, seed=7) for _ in range(2))
        out.check(N)
        assert inputs == before and out.report == again.report
        assert isinstance(out, PairLabels if settings["pairs"] else TextLabels)
        for one, two in zip(vars(out).values(), vars(again).values(), strict=True):
            assert np.array_equal(one, two)


def _trees(path: Path, prompts: Prompts) -> Path:
    """Write a tree of two steps for every second prompt."""
    values = {f" {word}": value for word, value in (("right", 0.9), ("wrong", 0.1))}
    nodes = [
        {"id": i, "parent": None, "text": text, "value": value}
        for i, (text, value) in enumerate(values.items())
    ]
    trees = [{"id": i, "prompt": text, "nodes": nodes} for i, text in enumerate(prompts.texts[::2])]
    path.write_text("".join(json.dumps(tree) + "\n" for tree in trees))
    return path


def _texts(node: Node) -> list[list[str]]:
    """Solutions of which four in five have the right answer."""
    rng = np.random.default_rng(zlib.crc32(repr((node.stage, node.settings)).encode()))
    n = dict(node.settings).get("n", 1)
    return [[f" {i} + 1\n#### {i + 1 + (rng.random() < 0.2)}" for _ in range(n)] for i in range(N)]


def _check_targets(out: Targets) -> None:
    assert isinstance(out, Targets)
    assert out.probs.shape == (N, 2) and out.probs.dtype == np.float32
    assert np.isfinite(out.probs).all() and (out.probs >= 0).all()
    assert out.probs[out.used].sum(1) == pytest.approx(1, abs=1e-5)
    assert out.used.any()
    if out.weight is not None:
        assert out.weight.shape == (N,) and out.weight.dtype == np.float32
        assert (out.weight >= 0).all()


def test_a_method_of_ones_own() -> None:
    assert isinstance(make_method("w2s_fast.methods.elicit:Elicit:calibrate=none"), Method)
    with pytest.raises(W2SError, match="did you mean 'elicit'"):
        make_method("elcit")
    with pytest.raises(W2SError, match="expected names with one '|'"):
        make_steps("elicit||naive")
