"""Soups and interpolation in a run: which weights they have, which rows decide, what is shown."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.generation_cases import checkpoint
from helpers.toy_run import config
from rich.console import Console
from safetensors.torch import load_file

from w2s_fast.errors import W2SError
from w2s_fast.methods import Node, Plan, make_method, make_steps, student_nodes
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import LABELS, LOG, MODEL, SWEEP, TEST, read_probs
from w2s_fast.pipeline.context import Context, load_data
from w2s_fast.pipeline.export import export
from w2s_fast.pipeline.jobs import Job
from w2s_fast.pipeline.stages.training_set import TrainingSet, group_split, shared_holdout
from w2s_fast.report.check_results import problem
from w2s_fast.report.page import html_page
from w2s_fast.report.terminal import print_results
from w2s_fast.tasks import Inputs
from w2s_fast.tasks.datasets.agreement import tokenizer


def _folder(results: dict[str, Any], out: Path, stage: str) -> Path:
    return out / "cache" / results["provenance"]["stages"][stage]["folder"]


def _students(out: Path, method: str, **changes: Any) -> tuple[dict[str, Any], list[Path]]:
    """Run a method; return results, the folder of its student, and those of its members."""
    results = run(config(out, methods=["naive", method], **changes))
    assert problem(results) == ""
    stages = results["provenance"]["stages"]
    own = f"student/0/{method}+xent"
    names = [n for n in stages if n == own or (n.startswith(f"{own}/") and n[len(own) + 1 :])]
    return results, [_folder(results, out, n) for n in sorted(names)]


def test_a_soup_has_the_mean_weights(tmp_path: Path) -> None:
    """The first member is the naive student; the test predictions are those of the mean."""
    results, (own, *members) = _students(tmp_path, "soup:members=3")
    members = [_folder(results, tmp_path, "student/0/xent"), *members]
    assert len(members) == 3
    weights = [load_file(m / MODEL) for m in members]
    assert len({w["weight"].numpy().tobytes() for w in weights}) == 3
    for name, t in load_file(own / MODEL).items():
        mean = torch.stack([w[name].double() for w in weights]).mean(0)
        torch.testing.assert_close(t.double(), mean, rtol=1e-6, atol=1e-8)
    (row,) = results["merged"]
    assert row == {"seed": 0, "name": "soup:members=3+xent", "how": "soup", "members": 3,
                   "chosen": [0, 1, 2]}  # fmt: skip
    ids = load_data(config(tmp_path).task, 0).test.ids
    single, soup = (read_probs(f / TEST, ids, 2) for f in (members[0], own))
    assert np.abs(single - soup).max() > 1e-3


def test_members_may_differ_by_loss_and_learning_rate() -> None:
    steps = make_steps("soup:members=2,losses=xent+logconf,lr_factors=0.5+1")
    student, _ = student_nodes(steps, Plan())
    members = [dict(node.settings) for name, node in student.needs if name.startswith("trained")]
    assert [
        (m.get("member", 0), m["loss"].split(":")[0], m.get("lr_factor", 1.0)) for m in members
    ] == [(i, loss, f) for i in (0, 1) for loss in ("xent", "logconf") for f in (0.5, 1.0)]
    assert str(dict(student.settings)["loss"]).startswith("xent")


def _trained(node: Node) -> list[dict[str, Any]]:
    """Return the settings of the students that a student is made of, in order."""
    return [dict(n.settings) for name, n in node.needs if name.startswith("trained")]


def test_a_learning_rate_of_the_students_own_is_multiplied() -> None:
    plan = Plan()
    student = plan.student(plan.weak_labels(), lr_factor=0.5)
    soup = make_method("soup:members=1,lr_factors=0.5+3").final(plan, student)
    assert [m["lr_factor"] for m in _trained(soup)] == [0.25, 1.5]


def test_members_that_are_made_of_others_vary_in_these() -> None:
    soup, _ = student_nodes(make_steps("interpolate|soup:members=2"), Plan())
    swept = [node for name, node in soup.needs if name.startswith("trained")]
    assert [dict(n.settings)["merge"] for n in swept] == ["interpolation"] * 2
    assert [m.get("member", 0) for n in swept for m in _trained(n)] == [0, 1]


def test_every_member_holds_the_same_rows_out() -> None:
    """They depend on the seed of the run, not on that of the member."""
    groups = tuple(f"group {i}" for i in range(50))
    items = Inputs(groups, groups, None, groups)
    training_set = TrainingSet(items, np.zeros((50, 2), np.float32))

    def held_out(member: int) -> np.ndarray:
        job: Any = Job("student", "s", 3, (("holdout", 0.3), ("member", member)))
        ctx: Any = Context(config(Path("unused")), job, {}, lambda *_: None, lambda _: None)
        assert (ctx.seed == 3) == (member == 0)
        return shared_holdout(ctx, training_set)

    assert np.array_equal(held_out(0), held_out(1))
    assert np.array_equal(held_out(0), group_split(groups, 0.3, 3)) and held_out(0).sum() == 15


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("soup:members=1", "expected at least 2 students to average"),
        ("soup:lr_factors=1+0", "lr_factors is '1\\+0'; expected numbers above 0"),
        ("soup:lr_factors=1+x", "lr_factors is '1\\+x'; expected numbers above 0"),
        ("soup:losses=xent+xnet", "losses is 'xent\\+xnet'; expected specs of losses"),
        ("interpolate:points=1", "points"),
        ("greedy_soup|interpolate:holdout=0.2", "trains with holdout=0.2"),
    ],
)
def test_settings_that_do_not_fit_are_named(spec: str, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        student_nodes(make_steps(spec), Plan())


def test_random_starts_have_no_mean(tmp_path: Path) -> None:
    scratch = {"source": "scratch", "hidden": 16, "heads": 2}
    with pytest.raises(W2SError, match="a method averages students of 3 seeds"):
        run(config(tmp_path, methods=["soup"], student=scratch))


def _held_out(out: Path, share: float) -> tuple[np.ndarray, Any]:
    data = load_data(config(out).task, 0)
    return group_split(data.transfer.groups, share, 0), data


def test_a_greedy_soup_is_judged_by_rows_that_no_member_has_learned(tmp_path: Path) -> None:
    spec = "greedy_soup:members=3,holdout=0.3"
    results, (own, *members) = _students(tmp_path, spec)
    (row,) = results["merged"]
    rows, data = _held_out(tmp_path, 0.3)
    steps = -(-int((~rows).sum()) * 2 // 16)
    logs = [json.loads((m / LOG).read_bytes()) for m in members]
    assert [log["steps"] for log in logs] == [steps] * 3
    weak = read_probs(
        _folder(results, tmp_path, "labels/0") / LABELS, data.transfer.ids, 2
    )[rows].argmax(1)  # fmt: skip
    from w2s_fast.models import ModelConfig, build_model
    from w2s_fast.training import encode, predict

    model = build_model(ModelConfig("bow"), 2, tokenizer(), 0)
    held_out = encode(tokenizer(), data.transfer.inputs.take(np.flatnonzero(rows).tolist()))

    def agreement(weights: dict[str, torch.Tensor]) -> float:
        model.load_state_dict(weights)
        return float((predict(model, held_out).argmax(1) == weak).mean())

    alone = [load_file(m / MODEL) for m in members]
    assert row["member_agreement"] == [agreement(w) for w in alone]
    assert row["agreement"] == agreement(load_file(own / MODEL))
    assert row["agreement"] >= max(row["member_agreement"])
    chosen = [alone[i] for i in row["chosen"]]
    for name, t in load_file(own / MODEL).items():
        mean = torch.stack([w[name] for w in chosen]).mean(0)
        torch.testing.assert_close(t, mean, rtol=1e-6, atol=1e-8)


def _shown(results: dict[str, Any]) -> str:
    out = io.StringIO()
    print_results(results, Console(file=out, width=120))
    return out.getvalue()


def test_interpolation_takes_the_coefficient_that_weak_labels_prefer(tmp_path: Path) -> None:
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    student = {"source": source, "head_init": "small"}
    results, (own, trained) = _students(
        tmp_path, "interpolate:points=5,holdout=0.5", student=student
    )
    (row,) = results["merged"]
    assert row["alphas"] == [0, 0.25, 0.5, 0.75, 1]
    agreement = row["agreement"]
    assert row["alpha"] == row["alphas"][agreement.index(max(agreement))]
    rows, data = _held_out(tmp_path, 0.5)
    assert row["held_out"] == rows.sum() and len(set(agreement)) > 1
    ids, labels = data.test.ids, data.test.labels
    swept = np.load(own / SWEEP)
    assert swept.shape == (5, len(ids), 2)
    assert row["accuracy"] == [float((p.argmax(1) == labels).mean()) for p in swept]
    at = row["alphas"].index(row["alpha"])
    assert np.array_equal(read_probs(own / TEST, ids, 2), swept[at])
    assert np.array_equal(read_probs(trained / TEST, ids, 2), swept[-1])
    # The weights are on the line from the checkpoint to the trained ones.
    start, end = load_file(Path(source) / "model.safetensors"), load_file(trained / MODEL)
    for name, t in load_file(own / MODEL).items():
        first = start.get(name.replace("base.", "model.", 1))
        if first is not None:
            expected = first.lerp(end[name], row["alpha"])
            torch.testing.assert_close(t, expected, rtol=1e-6, atol=1e-7)
    assert "alpha" in _shown(results) and "Interpolation with the initial weights" in _shown(
        results
    )
    page = html_page(results)
    assert page.count("<h2>Means of weights</h2>") == 1


def test_a_soup_of_heads_is_interpolated_too(tmp_path: Path) -> None:
    """``a|b`` applies b to the student of a; heads on cached states are students as well."""
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    method = "probe|soup:members=2|interpolate:points=3"
    results, _ = _students(tmp_path, method, student={"source": source})
    first, second = results["merged"]
    assert first["how"] == "interpolation" and len(first["accuracy"]) == 3
    assert second["how"] == "soup" and second["members"] == 2
    cfg = config(tmp_path, methods=["naive", method], student={"source": source})
    export(cfg, f"student/0/{method}+xent", tmp_path / "exported")
    head = load_file(tmp_path / "exported" / "head.safetensors")
    folder = _folder(results, tmp_path, f"student/0/{method}+xent")
    for name, t in load_file(folder / MODEL).items():
        assert torch.equal(head[name.removeprefix("head.")], t)


def test_lora_students_are_averaged_by_their_updates(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    source = str(checkpoint("llama", tmp_path / "llama", tokenizer()))
    student = {"source": source, "lora_rank": 2}
    train = {"epochs": 2, "lr": 0.03, "batch_size": 16}
    results, (own, *members) = _students(
        tmp_path, "soup:members=2", student=student, student_train=train
    )
    members = [_folder(results, tmp_path, "student/0/xent"), *members]
    made, parts = load_file(own / MODEL), [load_file(m / MODEL) for m in members]
    layer = next(n for n in made if n.endswith("q_proj.base_layer.weight")).removesuffix(
        "base_layer.weight"
    )
    updates = [
        8.0 * (w[f"{layer}lora_B.default.weight"] @ w[f"{layer}lora_A.default.weight"])
        for w in parts
    ]
    moved = made[f"{layer}base_layer.weight"] - parts[0][f"{layer}base_layer.weight"]
    torch.testing.assert_close(moved, (updates[0] + updates[1]) / 2, rtol=1e-4, atol=1e-5)
    assert moved.abs().max() > 1e-3 and not made[f"{layer}lora_B.default.weight"].any()
