"""The two stages of weak-to-strong reasoning as methods: their plans, sets and pairs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from w2s_fast.errors import W2SError
from w2s_fast.methods import Node, PairLabels, Plan, Prompts, make_method, make_steps, student_nodes

PLAN = Plan()
IDS = ["apples", "pens", "trip", "cake"]
PROMPTS = Prompts(IDS, [f"Question: {i}\nAnswer:" for i in IDS])
WEAK = [[" 3 * 4 = 12.\n#### 12"], ["\n#### 5"], ["\n#### 2"], [""]]
IN_CONTEXT = [[" so 12\n#### 12.0"], ["\n#### 6"], ["no idea"], ["\n#### 1"]]


def student(spec: str, plan: Plan = PLAN) -> Node:
    return student_nodes(make_steps(spec), plan)[0]


def walk(node: Node) -> Iterator[Node]:
    yield node
    for _, needed in node.needs:
        yield from walk(needed)


def needs(node: Node, name: str) -> Node:
    return dict(node.needs)[name]


def selected(sets: str, rule: str = "number") -> tuple[list[tuple[int, str]], dict[str, object]]:
    method = make_method(f"agreement_sft:rule={rule}")
    labels = getattr(method, f"{sets}_set")(PROMPTS, weak=WEAK, in_context=IN_CONTEXT, seed=0)
    labels.check(len(IDS))
    return list(zip(labels.rows.tolist(), labels.texts, strict=True)), dict(labels.report)


def test_sets_are_the_solutions_with_equal_answers_and_the_report_names_all_others() -> None:
    weak, in_context = (0, WEAK[0][0]), (0, IN_CONTEXT[0][0])
    fates = {
        "kept": ("apples",), "different": ("pens",), "empty": ("cake",),
        "unreadable": ("trip",), "undecided": (),
    }  # fmt: skip
    assert selected("weak") == ([weak], {"set": "weak", **fates})
    assert selected("in_context") == ([in_context], {"set": "in context", **fates})
    assert selected("hybrid") == ([weak, in_context], {"set": "hybrid", **fates})
    with pytest.raises(W2SError, match="keeps none of 4 items .*0 kept, 2 different, 1 empty"):
        selected("weak", rule="string")


@pytest.mark.parametrize("sets", ["weak", "in_context", "hybrid"])
def test_the_first_iteration_compares_the_weak_model_with_the_prompted_student(sets: str) -> None:
    labels = needs(student(f"agreement_sft:sets={sets},shots=3,rule=number"), "labels")
    assert labels.stage == "text_labels" and dict(labels.settings)["function"] == f"{sets}_set"
    assert needs(labels, "weak") == PLAN.weak_labels()
    assert needs(labels, "in_context") == PLAN.samples(shots=3)
    assert "shown as examples" in needs(labels, "in_context").weak_gold[0]


def test_later_iterations_compare_the_students_of_both_sets_before() -> None:
    for iterations in (2, 3):
        labels = needs(student(f"agreement_sft:iterations={iterations},rule=number"), "labels")
        for name in ("weak", "in_context"):
            samples = needs(labels, name)
            before = f"agreement_sft:sets={name},iterations={iterations - 1},rule=number"
            assert samples == PLAN.samples(student(before))  # trained once for all methods
            assert dict(samples.settings)["temperature"] == dict(samples.settings)["shots"] == 0
            assert dict(samples.settings)["n"] == 1


def test_settings_that_select_nothing_else_share_their_selection() -> None:
    def earlier(spec: str) -> set[Node]:
        return set(walk(student(spec))) - {student(spec), needs(student(spec), "labels")}

    hybrid, weak = (f"agreement_sft:sets={s},iterations=2" for s in ("hybrid", "weak"))
    assert earlier(hybrid) == earlier(weak)
    assert earlier(hybrid) != earlier(f"{hybrid},shots=2")


def test_pairs_come_from_samples_of_the_student_that_continues_on_them() -> None:
    first = "agreement_sft:iterations=2,rule=number"
    for loss, spec in {"dpo": "dpo:beta=0.1", "orpo": "orpo:lam=0.1"}.items():
        node = student(f"{first}|contrast:loss={loss},n=7,temperature=0.7,rule=number")
        assert dict(node.settings)["loss"] == spec and dict(node.settings)["lr_factor"] == 0.1
        assert needs(node, "initial") == student(first)
        labels = needs(node, "labels")
        assert dict(labels.settings)["pairs"] is True
        assert needs(labels, "weak") == PLAN.weak_labels()  # of the weak model, not of stage I
        assert needs(labels, "samples") == PLAN.samples(student(first), n=7, temperature=0.7)
        assert ("reference" in dict(node.needs)) == (loss == "dpo")
    assert needs(student("contrast:strength=0.5"), "initial") == student("naive")
    assert dict(student("contrast:strength=0.5").settings)["loss"] == "dpo:beta=0.5"


def pairs(
    seed: int = 0, spec: str = "", right: int = 8
) -> tuple[PairLabels, list[list[str]], list[list[str]]]:
    good, bad = " 3 * 4\n#### 12", " 3 + 4\n#### 7"
    samples = [[good] * right + [f"{bad} of {i}" for i in range(10 - right)] for _ in IDS]
    weak = [[" w\n#### 12"], [" w\n#### 7"], [" w\n#### 12"], [""]]
    method = make_method(f"contrast:rule=number{spec}")
    labels = method.pairs(PROMPTS, weak=weak, samples=samples, seed=seed)  # type: ignore[attr-defined]
    labels.check(len(IDS))
    return labels, weak, samples


def test_pairs_have_the_weak_solution_on_one_side_and_the_report_names_every_item() -> None:
    labels, weak, samples = pairs()
    assert labels.rows.tolist() == [0, 1, 2]
    for row, chosen, rejected in zip(labels.rows, labels.chosen, labels.rejected, strict=True):
        [own] = weak[row]
        assert (chosen == own) == (row != 1) and (rejected == own) == (row == 1)
        assert (rejected if row != 1 else chosen) in samples[row]
        assert "12" in chosen and "12" not in rejected
    report = dict(labels.report)
    assert report["weak_chosen"] == ("apples", "trip") and report["weak_rejected"] == ("pens",)
    assert report["weak_empty"] == ("cake",) and report["n_unreadable_samples"] == 0
    assert (labels.soft == [1, 0]).all()


def test_confidences_and_seed_decide() -> None:
    labels, _, _ = pairs(right=7)
    assert labels.rows.tolist() == [0, 2] and labels.report["below_override"] == ("pens",)
    labels, _, _ = pairs(right=7, spec=",override_confidence=0.7")
    assert labels.rows.tolist() == [0, 1, 2]
    with pytest.raises(W2SError, match="keeps none of 4 items .*3 low_confidence"):
        pairs(right=7, spec=",confidence=0.75")
    drawn = {tuple(pairs(seed, right=6)[0].rejected) for seed in range(20)}
    assert len(drawn) > 1
    assert pairs(3)[0].rejected == pairs(3)[0].rejected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("agreement_sft|agreement_sft", "put it before methods that select or pair texts"),
        ("contrast|agreement_sft", "put it before methods that select or pair texts"),
        ("contrast:confidence=0.9", "override_confidence is 0.8, below confidence=0.9"),
        ("contrast:loss=simpo", "one of dpo, orpo"),
        ("agreement_sft:iterations=4", r"iterations is 4; expected a number in \[1, 3\]"),
        ("agreement_sft:sets=both", "one of weak, in_context, hybrid"),
        ("agreement_sft:rule=fuzzy", "one of math, number, string"),
        ("contrast|contrast", "pairs"),
    ],
)
def test_specs_that_do_not_fit(spec: str, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        student(spec)


@pytest.mark.parametrize("name", ["agreement_sft", "contrast"])
def test_a_missing_library_is_found_before_anything_is_computed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2s_fast.reasoning import equality

    def missing() -> None:
        raise W2SError("math-verify is not installed")

    monkeypatch.setattr(equality, "check_installed", missing)
    make_method(f"{name}:rule=number").check_task(2, 10)
    with pytest.raises(W2SError, match="math-verify"):
        make_method(name).check_task(2, 10)
