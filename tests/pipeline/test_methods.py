"""Methods in the pipeline: what a plan becomes, and that no true label reaches a student."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.toy_run import config
from safetensors.torch import load_file

from w2s_fast.comparison.run_scores import load_outcomes
from w2s_fast.errors import W2SError
from w2s_fast.methods import METHODS, Method, Node, Plan, Targets
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import read_probs
from w2s_fast.pipeline.context import Context, load_data
from w2s_fast.pipeline.export import export
from w2s_fast.pipeline.jobs import Job, plan_jobs
from w2s_fast.pipeline.stages.report import gold_uses
from w2s_fast.pipeline.students import students
from w2s_fast.tasks import TASKS, TaskConfig, TaskData
from w2s_fast.tasks.datasets.agreement import Agreement

GOLD = {
    "explicit_conflict": "explicit conflict: a simulated objective against the true labels",
    "ground_truth_early_stop": "early stopping on true labels",
}  # the only methods that use true labels of the transfer set
# What the weak model may learn from, used beside it.
WEAK_GOLD = dict.fromkeys(
    ("trust", "selective"), "true labels of the weak split train P(label right)"
) | {"ensem_w2s": "true labels of the weak split weight the votes of weak models"}
OF_CLASSES = [name for name, kind in METHODS.items() if "classification" in kind.kinds]


class FlippedGold:
    """The embedded task with every true label of the transfer set turned round."""

    def load(self, cfg: TaskConfig, seed: int) -> TaskData:
        data = Agreement().load(cfg, seed)
        flipped = dataclasses.replace(data.transfer, labels=1 - data.transfer.labels)
        return dataclasses.replace(data, transfer=flipped)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everything(Method):
    """Asks for one of each thing and checks what arrives."""

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(
            self.check,
            weak=labels,
            other=plan.weak_labels(member=1),
            balance=plan.gold_balance(),
            seen=plan.trajectory(plan.student(labels, record=True)),
        )

    def check(
        self, weak: Targets, other: Targets, balance: np.ndarray, seen: np.ndarray, seed: int
    ) -> Targets:
        n = len(weak.probs)
        assert weak.probs.shape == other.probs.shape == (n, 2) and weak.weight is None
        assert not np.array_equal(weak.probs, other.probs)
        assert balance.tolist() == [0.5, 0.5] and seen.shape == (2, n, 2)
        assert np.allclose(seen.sum(2), 1, atol=1e-5) and seed == 0
        return weak.keep(np.arange(n) % 2 == 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromCeiling(Method):
    """Tries to learn from the ceiling's labels."""

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.labels(plan.ceiling())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forged(Method):
    """Tries to learn from a node that is made by hand, see ``forged``."""

    node: str = "balance"

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.tilt, weak=labels, other=forged(plan)[self.node])

    def tilt(self, weak: Targets, other: Any, seed: int) -> Targets:
        return weak


def forged(plan: Plan) -> dict[str, Node]:
    """Return nodes that carry true labels, or what a model learned from them."""
    on_gold = Node("weak", (("role", "student"),))
    return {
        "balance": Node("balance"),
        "student on the weak split": plan.labels(on_gold),
        "intermediate model on the weak split": plan.labels(
            Node("weak", (("member", 0), ("role", "intermediate/0")))
        ),
        "trust in memorized labels": plan.trust(plan.weak_labels(split="weak")),
        "trust by memorized labels": plan.trust(
            plan.weak_labels(), own=plan.weak_labels(split="weak")
        ),
        "trust by a ceiling": plan.trust(plan.weak_labels(), own=plan.labels(plan.ceiling())),
        "student that starts as the weak model": plan.labels(
            plan.student(plan.weak_labels(), start=plan.weak_model())
        ),
        "states of the weak model": plan.features(start=plan.weak_model()),
        "training of the weak model": plan.trajectory(plan.weak_model()),
        "memorized labels": plan.weak_labels(split="weak"),
        "labels of a half": plan.labels(plan.weak_model(fold=0), "weak"),
        "student of memorized labels": plan.labels(plan.student(plan.weak_labels(split="weak"))),
        "samples of memorized prompts": plan.labels(
            plan.student(Node("text_labels", (), (("texts", plan.samples(split="weak")),)))
        ),
        "a start from the ceiling": plan.labels(plan.student(plan.weak_labels(), plan.ceiling())),
        "forged start from the weak model": plan.labels(
            Node("student", (("role", "student"),), (("initial", plan.weak_model()),))
        ),
        "ceiling": plan.labels(plan.ceiling()),
        "scores": Node("report"),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crooked(Method):
    """Gives back labels of another shape."""

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.cut, weak=labels)

    def cut(self, weak: Targets, seed: int) -> Targets:
        return Targets(weak.probs[:-1])


def test_a_plan_is_computed_and_reported(tmp_path: Path) -> None:
    mine = f"{__name__}:Everything"
    cfg = config(tmp_path, methods=["naive", mine, "strong_to_strong:rounds=2"])
    results = run(cfg)
    names = [r["name"] for r in results["runs"]]
    assert names == ["xent", f"{mine}+xent", "strong_to_strong:rounds=2+xent"]
    assert results["gold"] == [{"name": f"{mine}+xent", "use": "class balance of the transfer set"}]
    assert all(r["ceiling_name"] == "" for r in results["runs"])
    stages = results["provenance"]["stages"]
    assert len([name for name in stages if name.startswith("weak/")]) == 2
    assert sorted(name for name in stages if name.startswith("student/")) == [
        "student/0/strong_to_strong:rounds=2+xent",
        "student/0/strong_to_strong:rounds=2+xent/1",  # round 1 is the naive student
        f"student/0/{mine}+xent",
        f"student/0/{mine}+xent/1",
        "student/0/xent",
    ]


def test_equal_nodes_are_one_job() -> None:
    """The naive student is the first student of strong-to-strong."""
    cfg = config(Path("unused"), methods=["naive", "strong_to_strong:rounds=1"])
    jobs = [j.name for j in plan_jobs(cfg).jobs]
    assert jobs.count("student/0/xent") == 1
    assert sorted(j for j in jobs if j.startswith("student")) == [
        "student/0/strong_to_strong:rounds=1+xent", "student/0/xent"
    ]  # fmt: skip


def test_methods_go_with_every_loss_or_with_their_own() -> None:
    methods = ["naive", "strong_to_strong@logconf:aux_coef=0.3"]
    cfg = config(Path("unused"), methods=methods, losses=["xent", "window"])
    assert [s.name for s in students(cfg)] == [
        "xent", "window", "strong_to_strong+logconf:aux_coef=0.3"
    ]  # fmt: skip
    with pytest.raises(W2SError, match="names no loss"):
        students(config(Path("unused"), methods=["naive@"]))
    twice = ["strong_to_strong", "strong_to_strong:rounds=1"]
    with pytest.raises(W2SError, match="are the same"):
        students(config(Path("unused"), methods=twice))


def test_a_chain_of_models(tmp_path: Path) -> None:
    chain = ["bow", "scratch:hidden=16,heads=2"]
    cfg = config(tmp_path, methods=["naive", "bootstrap"], intermediate_models=chain)
    results = run(cfg)
    stages = results["provenance"]["stages"]
    made = sorted(name for name in stages if name.startswith("intermediate/"))
    assert made == ["intermediate/0/bootstrap+xent/1", "intermediate/0/bootstrap+xent/2"]
    with pytest.raises(W2SError, match="needs models between"):
        run(config(tmp_path, methods=["bootstrap"]))
    with pytest.raises(W2SError, match="no field 'size'"):
        run(config(tmp_path, methods=["bootstrap"], intermediate_models=["bow:size=3"]))


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        ("FromCeiling", "trained on the true labels of the same rows"),
        ("Crooked", r"expected Targets with probs \(48, 2\)"),
    ],
)
def test_what_a_method_may_not_do(tmp_path: Path, method: str, problem: str) -> None:
    with pytest.raises(W2SError, match=problem):
        run(config(tmp_path, methods=[f"{__name__}:{method}"]))


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        ("student on the weak split", "which only the weak model may see"),
        ("intermediate model on the weak split", "which only the weak model may see"),
        ("student that starts as the weak model", "weights of the weak model"),
        ("states of the weak model", "weights of the weak model"),
        ("training of the weak model", "weights of the weak model"),
        ("memorized labels", "labels of the weak split to stage 'apply'"),
        ("labels of a half", "labels of the weak split to stage 'apply'"),
        ("student of memorized labels", "labels of the weak split to stage 'student'"),
        ("trust in memorized labels", "labels of the weak split to stage 'trust'"),
        ("trust by memorized labels", "labels of the weak split to stage 'trust'"),
        ("trust by a ceiling", "trained on the true labels of the same rows"),
        ("ceiling", "trained on the true labels of the same rows"),
        ("samples of memorized prompts", "labels of the weak split to stage 'text_labels'"),
        ("a start from the ceiling", "trained on the true labels of the same rows"),
        ("forged start from the weak model", "weights of the weak model"),
        ("scores", "asks for stage 'report'"),
    ],
)
def test_no_node_carries_true_labels_to_a_student(node: str, problem: str) -> None:
    with pytest.raises(W2SError, match=problem):
        plan_jobs(config(Path("unused"), methods=[f"{__name__}:Forged:node={node}"]))


def test_a_student_continues_from_a_student_alone() -> None:
    plan = Plan()
    with pytest.raises(W2SError, match="continues from a model of role 'weak'"):
        plan.student(plan.weak_labels(), plan.weak_model())
    node = plan.student(plan.weak_labels(), plan.student(plan.weak_labels()))
    assert dict(node.needs)["initial"] == plan.student(plan.weak_labels())


def test_only_samples_with_examples_read_true_labels() -> None:
    cfg = config(Path("unused"))
    read = partial(load_data, cfg.task)
    for shots in (0, 2):
        node = Plan().samples(shots=shots)
        job = Job("samples", "samples/0", 0, node.settings, weak_gold=node.weak_gold)
        ctx = Context(cfg, job, {}, lambda *_: None, read)
        if shots:
            assert len(ctx.gold("weak").labels) and "shown as examples" in node.weak_gold[0]
        else:
            assert node.weak_gold == ()
            with pytest.raises(W2SError, match="true labels"):
                ctx.gold("weak")
        with pytest.raises(W2SError, match="true labels"):
            ctx.gold("transfer")


def test_a_use_of_true_labels_is_shown_however_its_node_was_made() -> None:
    jobs = plan_jobs(config(Path("unused"), methods=[f"{__name__}:Forged"]))
    assert [use["use"] for use in gold_uses(jobs)] == ["class balance of the transfer set"]


@pytest.mark.parametrize(
    "stage",
    ["student", "labels", "apply", "features", "control", "tuned", "transcripts", "samples",
     "text_labels", "pair_logprob", "reference"],
)  # fmt: skip
def test_a_student_stage_has_no_gold_to_give(stage: str) -> None:
    """Not by asking, and not by looking: the rows it can see have no labels."""
    cfg = config(Path("unused"))
    read = partial(load_data, cfg.task)
    ctx = Context(cfg, Job(stage, f"{stage}/0", 0), {}, lambda *_: None, read)
    for split in ("weak", "transfer", "test"):
        with pytest.raises(W2SError, match="true labels"):
            ctx.gold(split)
        assert not hasattr(ctx.inputs(split), "labels")
        assert len(getattr(ctx.task, split).labels) == 0


# Without `critique`, whose weak model is a language model: tests/debate/test_critique.py.
OF_CLASSES = [
    name
    for name, method in METHODS.items()
    if "classification" in method.kinds and name != "critique"
]


def every_method(out: Path, flipped: bool) -> dict[str, Any]:
    """All methods of classes once, on the embedded task with a language model of a few seconds."""
    pretrain = {"hidden": 16, "layers": 2, "heads": 2, "steps": 12, "batch_size": 4, "length": 32}
    sizes = {"n_weak": 60, "n_transfer": 64, "n_test": 40}  # trust needs ten wrong labels
    cfg = config(
        out,
        task={"name": "agreement", **sizes, "pretrain": pretrain},
        student={"source": "agreement-lm"},
        weak_train={"epochs": 20, "lr": 0.3, "batch_size": 16},
        calibration_folds=2,
        student_train={"epochs": 2, "lr": 3e-3, "batch_size": 32},
        intermediate_models=["bow"],
        transcript_writer={"max_tokens": 3},
        methods=OF_CLASSES,
    )
    with pytest.MonkeyPatch.context() as patch:
        if flipped:
            patch.setitem(TASKS, "agreement", FlippedGold())
        return run(cfg)


@pytest.mark.slow
def test_every_method_runs_and_none_sees_a_true_label(tmp_path: Path) -> None:
    """Turning every true label of the transfer set round changes no student, bit for bit.

    It changes the ceilings, the methods that say they use true labels, and reports.
    """
    true, flipped = (every_method(tmp_path / str(f), f) for f in (False, True))
    names = [r["name"] for r in true["runs"]]
    assert names == ["xent", *(f"{m}+xent" for m in OF_CLASSES if m != "naive")]
    assert any(r["ceiling_name"] for r in true["runs"])
    assert load_outcomes(tmp_path / "False", true) is not None, "of every model, own ceilings too"
    uses = GOLD | WEAK_GOLD
    assert true["gold"] == [{"name": f"{m}+xent", "use": uses[m]} for m in OF_CLASSES if m in uses]
    before, after = (r["provenance"]["stages"] for r in (true, flipped))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name]["digest"] != after[name]["digest"]}
    ceilings = {name for name in before if name.startswith("ceiling/")}
    students = {f"student/0/{m}+xent" for m in GOLD}
    assert changed == ceilings | students | {"supervisor_card/0", "report"}


@pytest.mark.slow
def test_a_probe_from_the_cache_is_the_probe(tmp_path: Path) -> None:
    """The head that read cached states is the head of a frozen body in the ordinary loop."""
    pretrain = {"hidden": 16, "layers": 2, "heads": 2, "steps": 12, "batch_size": 4, "length": 32}
    task = {"n_weak": 40, "n_transfer": 64, "n_test": 40, "pretrain": pretrain}
    recipe = {"epochs": 4, "lr": 0.02, "batch_size": 16}
    cached = config(
        tmp_path / "cached",
        task=task,
        student={"source": "agreement-lm"},
        student_train=recipe,
        methods=["probe", "generative_finetuning", "generative_finetuning|probe|strong_to_strong"],
    )
    frozen = dataclasses.replace(
        cached,
        student=dataclasses.replace(cached.student, freeze="base"),
        methods=("naive",),
        output_dir=str(tmp_path / "frozen"),
    )
    probs = {}
    for cfg, name in ((cached, "student/0/probe+xent"), (frozen, "student/0/xent")):
        stage = run(cfg)["provenance"]["stages"][name]["folder"]
        ids = load_data(cfg.task, 0).test.ids
        probs[name] = read_probs(cfg.store_dir / stage / "test.parquet", ids, 2)
    one, two = probs.values()
    assert np.abs(one - 0.5).max() > 0.01, "nothing was learned"
    np.testing.assert_allclose(one, two, atol=2e-3)  # states are kept in bf16
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    export(cached, "student/0/probe+xent", ours)
    export(frozen, "student/0/xent", theirs)
    heads = [load_file(folder / "head.safetensors")["weight"].numpy() for folder in (ours, theirs)]
    np.testing.assert_allclose(*heads, atol=2e-3)
    bodies = [(folder / "model.safetensors").read_bytes() for folder in (ours, theirs)]
    assert bodies[0] == bodies[1]
