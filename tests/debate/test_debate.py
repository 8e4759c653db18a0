"""Debates: who argues what, who writes it, and that it helps a weak model and nobody else."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ranks
from helpers.endpoint import KEY, chat
from helpers.method_plans import evaluate, two

from w2s_fast.cli import main as cli
from w2s_fast.config import RunConfig, from_dict, to_yaml
from w2s_fast.debate import LocalWriter, WriterConfig, make_protocol
from w2s_fast.debate._prompts import spoken
from w2s_fast.errors import W2SError
from w2s_fast.methods import Plan, make_method
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import read_probs, read_texts
from w2s_fast.pipeline.context import Context, load_data
from w2s_fast.pipeline.job_identity import config_slice
from w2s_fast.pipeline.jobs import Job, plan_jobs
from w2s_fast.pipeline.stages.training_set import folds, load_training_set
from w2s_fast.tasks import TaskConfig

pytest_plugins = ("helpers.endpoint",)
VERDICTS = ("no", "yes")


class Scripted:
    """A writer that names the turn and records its prompts."""

    def __init__(self) -> None:
        self.prompts: list[list[str]] = []

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        self.prompts.append(list(prompts))
        return [f"argument {len(self.prompts)} of {seed}" for seed in seeds]


def test_three_turns_in_order() -> None:
    writer = Scripted()
    ids = ("r0", "r1")
    out = make_protocol("debate").transcripts(["Is ice cold?", "?"], ids, VERDICTS, writer, 3)
    first, second, third = (prompts[0] for prompts in writer.prompts)
    lines = out[0].splitlines()
    a = lines[0].split('"')[1]
    b = "no" if a == "yes" else "yes"
    assert [line.split(" argument")[0] for line in lines] == [
        f'A, for "{a}":', f'B, for "{b}":', f'A, for "{a}":'
    ]  # fmt: skip
    assert all("Is ice cold?" in p for p in (first, second, third))
    assert first.endswith(lines[0].split(" argument")[0]) and "So far" not in first
    assert f'Make the case for "{a}"' in first and "wrong in the argument" not in first
    assert lines[0] in second and f'Make the case for "{b}" and against "{a}"' in second
    assert "what is wrong in the argument of A" in second
    assert lines[0] in third and lines[1] in third and "Reply to what B said last" in third
    assert len({line.split("of ")[1] for line in lines}) == 3, "every turn is a sample of its own"


def test_longer_debates_and_single_speakers() -> None:
    def speakers(spec: str, weak: np.ndarray | None = None) -> list[str]:
        out = make_protocol(spec).transcripts(["?"], ["r"], VERDICTS, Scripted(), 0, weak)
        return [line.split(",")[0] for line in out[0].splitlines()]

    assert speakers("debate:turns=2") == ["A", "B"]
    assert speakers("debate:turns=5") == ["A", "B", "A", "B", "A"]
    assert speakers("consultancy") == ["Adviser"]
    assert speakers("market_making", np.array([[0.3, 0.7]])) == ["Adviser"]
    with pytest.raises(W2SError, match="expected at least 2, one per side"):
        make_protocol("debate:turns=1")
    with pytest.raises(W2SError, match="needs the predictions of the weak model"):
        speakers("market_making")


def _sides(spec: str, n: int, verdicts: Sequence[str], seed: int = 0) -> list[tuple[str, ...]]:
    ids = [f"row{i}" for i in range(n)]
    out = make_protocol(spec).transcripts([""] * n, ids, verdicts, Scripted(), seed)
    return [tuple(line.split('"')[1] for line in t.splitlines()) for t in out]


def test_verdicts_are_a_fair_draw_of_the_row_alone() -> None:
    sides = _sides("debate:turns=2", 2000, VERDICTS)
    counts = Counter(sides)
    assert set(counts) == {("no", "yes"), ("yes", "no")}
    assert abs(counts["no", "yes"] - 1000) < 110  # 5 standard deviations of a coin
    # another sample is another draw, unrelated to the first
    again = _sides("debate:turns=2", 2000, VERDICTS, seed=1)
    assert abs(sum(a == b for a, b in zip(sides, again, strict=True)) - 1000) < 110
    assert sides == _sides("debate:turns=2", 2000, VERDICTS)
    assert sides[7] == _sides("debate:turns=2", 8, VERDICTS)[7], "neighbours play no part"
    three = Counter(_sides("debate:turns=2", 6000, ("a", "b", "c")))
    assert len(three) == 6 and all(x != y for x, y in three)
    assert all(abs(n - 1000) < 150 for n in three.values())
    assert abs(Counter(_sides("consultancy", 2000, VERDICTS))["no",] - 1000) < 110


def test_market_making_argues_what_the_weak_model_did_not_pick() -> None:
    weak = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])
    out = make_protocol("market_making").transcripts(
        ["", "", ""], ["r0", "r1", "r2"], ("a", "b", "c"), Scripted(), 0, weak
    )
    assert [t.split('"')[1] for t in out] == ["b", "b", "a"]


def test_only_the_argument_is_kept() -> None:
    assert spoken(' A, for "yes": it melts.\nB, for "no": wrong\n') == "it melts."
    assert spoken("it melts.\n\nSo I say.") == "it melts.\n\nSo I say."
    assert spoken('Adviser, for "a b": x') == "x" and spoken("") == ""


def test_members_differ_in_transcripts_or_in_seeds() -> None:
    p = Plan()
    members = make_method("debate:members=3").labels(p, p.weak_labels()).needs[1:]
    needs = [dict(n.needs) for _, n in members]
    assert [dict(a["context"].settings)["member"] for a in needs] == [0, 1, 2]
    assert {dict(a["model"].settings)["member"] for a in needs} == {0}
    for a in needs:  # what a model learned with is what it labels with, of the other half
        learned, read = dict(a["model"].needs)["context"].settings, a["context"].settings
        assert dict(learned) == {**dict(read), "split": "weak"}
        assert dict(read)["split"] == "transfer" and dict(read)["protocol"] == "debate:turns=3"
    seeds = make_method("debate:members=3,ensemble=finetune").labels(p, p.weak_labels()).needs[1:]
    models = [dict(n.needs)["model"] for _, n in seeds]
    assert [dict(m.settings)["member"] for m in models] == [0, 1, 2]
    assert len({dict(n.needs)["context"] for _, n in seeds}) == 1


@pytest.mark.parametrize(("how", "expected"), [("mean", 0.55), ("log", 0.6)])
def test_labels_of_members_are_pooled_and_the_plain_ones_left_out(
    how: str, expected: float
) -> None:
    p = Plan()
    node = make_method(f"debate:members=2,pool={how}").labels(p, p.weak_labels())
    one, other = (n for name, n in node.needs if name != "weak")
    given = {p.weak_labels(): two(0.01, weight=[0.5]), one: two(0.9), other: two(0.2)}
    out = evaluate(node, given)
    assert out.probs[0, 1] == pytest.approx(expected) and out.weight.tolist() == [0.5]


def config(out: Path, **changes: Any) -> RunConfig:
    recipe = {"epochs": 4, "lr": 0.1, "batch_size": 16}
    values = {
        "task": {"n_weak": 48, "n_transfer": 64, "n_test": 40},
        "weak": {"source": "bow"},
        "student": {"source": "bow"},
        "weak_train": recipe,
        "student_train": recipe,
        "losses": ["xent"],
        "seeds": [0],
        "output_dir": str(out),
        "workers": 1,
        "threads": 1,
    }
    return from_dict({**values, **changes})


def test_nobody_pays_again_for_what_cannot_change_a_text() -> None:
    def slices(**changes: Any) -> Any:
        base = {"kind": "endpoint", "url": "http://x/completions", "model": "m", **changes}
        lm = {"source": "agreement-lm"}
        cfg = config(Path("unused"), methods=["debate"], student=lm, transcript_writer=base)
        jobs = [j for j in plan_jobs(cfg).jobs if j.stage == "transcripts"]
        assert len(jobs) == 8 and all(not j.inputs for j in jobs), (
            "no model of this run plays a part"
        )
        return [config_slice(cfg, j, 2) for j in jobs]

    plain = slices()
    assert plain == slices(workers=1, retries=0, timeout_s=1.0, key_variable="OTHER")
    for change in ({"model": "n"}, {"temperature": 0.0}, {"max_tokens": 3}):
        assert plain != slices(**change)


# True labels.


def test_no_weak_model_is_asked_about_texts_that_it_learned() -> None:
    """Its pick of one would be the true label."""
    cfg, p = config(Path("unused")), Plan()
    learned = p.transcripts("market_making", "weak", judged=True)
    models = [dict(n.needs)["model"] for _, n in learned.needs]
    rows = []
    for fold, model in enumerate(models):
        job = Job("weak", f"weak/{fold}", 0, model.settings)
        ctx = Context(cfg, job, {}, lambda *_: None, partial(load_data, cfg.task))
        taught = set(load_training_set(ctx).items.ids)
        weak = ctx.inputs("weak")
        labelled = {i for i, f in zip(weak.ids, folds(ctx, weak), strict=True) if f == fold}
        assert taught and labelled and not taught & labelled and taught | labelled == set(weak.ids)
        rows.append(labelled)
    assert not rows[0] & rows[1]
    (only,) = p.transcripts("market_making", "transfer", judged=True).needs
    assert only == ("weak", p.weak_labels())


# Whole runs.

TINY = {"hidden": 16, "layers": 1, "heads": 2, "steps": 4}


@pytest.mark.slow
def test_debate_on_the_embedded_task(tmp_path: Path) -> None:
    methods = ["naive", "debate:members=2", "consultancy", "market_making"]
    task = {"n_weak": 24, "n_transfer": 30, "n_test": 40, "pretrain": TINY}
    cfg = config(tmp_path, task=task, student={"source": "agreement-lm"}, methods=methods,
                 student_train={"epochs": 1}, transcript_writer={"max_tokens": 6})  # fmt: skip
    results = run(cfg)
    stages = results["provenance"]["stages"]
    assert len({r["weak"] for r in results["runs"]}) == 1 and results["gold"] == []
    written = {n: s for n, s in stages.items() if n.startswith("transcripts/")}
    assert len(written) == 2 * (2 + 1 + 1)
    texts = {n: _transcripts(cfg, s) for n, s in written.items()}
    assert sorted(map(len, texts.values())) == [24] * 4 + [30] * 4
    one, *_ = [t for n, t in texts.items() if "debate" in n and len(t) == 30]
    assert all(t.count("A, for") == 2 and t.count("B, for") == 1 for t in one.values())
    assert len(set(one.values())) > 20, "samples of their own"
    again = run(replace(cfg, output_dir=str(tmp_path / "again"), cache_dir=str(tmp_path / "other")))
    assert [r["student"] for r in again["runs"]] == [r["student"] for r in results["runs"]]
    for name, stage in written.items():
        assert again["provenance"]["stages"][name]["digest"] == stage["digest"]


def _transcripts(cfg: RunConfig, stage: dict[str, Any]) -> dict[str, str]:
    return read_texts(cfg.store_dir / stage["folder"] / "transcripts")


@pytest.mark.slow
def test_true_arguments_make_better_weak_labels(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint knows the number of the subject and says so in 90 % of its answers.

    The first run ends half-way; the second one asks for the rest.
    """
    monkeypatch.setenv("W2S_KEY", KEY)
    sizes = {"n_weak": 200, "n_transfer": 300, "n_test": 100}
    data = load_data(TaskConfig(**sizes), 0)
    gold = {
        t: int(y)
        for split in (data.weak, data.transfer)
        for t, y in zip(split.texts, split.labels, strict=True)
    }
    paid: list[int] = []
    money = 700

    def knowing(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if len(paid) >= money:
            return 402, {}, b"no money"
        paid.append(number)
        item = body["messages"][0]["content"].split("Item:\n")[1].split("\n")[0]
        verdict = gold[item] ^ (body["seed"] % 10 == 0)
        return 200, {}, chat(("this one", "these all")[verdict])

    server = serve(knowing)
    writer = {"kind": "endpoint", "url": f"{server.base}/chat/completions", "model": "strong",
              "key_variable": "W2S_KEY", "workers": 1}  # fmt: skip
    cfg = config(
        tmp_path, task=sizes, methods=["naive", "debate:members=2"], transcript_writer=writer
    )
    with pytest.raises(W2SError, match="HTTP 402: no money"):
        run(cfg)
    money = 10**6
    results = run(cfg)
    assert len(paid) == 2 * 3 * 500 and set(server.keys) == {f"Bearer {KEY}"}
    stages = results["provenance"]["stages"]

    def right(name: str) -> float:
        labels = cfg.store_dir / stages[name]["folder"] / "labels"
        probs = read_probs(labels, data.transfer.ids, 2)
        return float((probs.argmax(1) == data.transfer.labels).mean())

    member = [right(name) for name in stages if name.startswith("labels/0/debate")]
    assert len(member) == 2 and min(member) > right("labels/0") + 0.05
    assert right("apply/0/debate:members=2+xent/1") >= min(member) > 0.85
    naive, debated = results["runs"]
    assert naive["weak"] == debated["weak"] and naive["ceiling"] == debated["ceiling"]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_ask_for_what_one_asks(serve: Any, tmp_path: Path) -> None:
    """Each asks for half of the rows, once; the transcripts are the same files."""
    server = serve(lambda _, body: (200, {}, chat(f"the {['dog', 'cat'][body['seed'] % 2]}")))
    writer = {"kind": "endpoint", "url": f"{server.base}/chat/completions", "model": "strong"}
    transcripts, requests = [], []
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        cfg = config(folder / "out", methods=["market_making"], transcript_writer=writer)
        (folder / "run.yaml").write_text(to_yaml(cfg))
        before = len(server.requests)
        ranks.run(__file__, size, ["run", "--config", str(folder / "run.yaml"), "--quiet"])
        requests.append(sorted(json.dumps(r) for r in server.requests[before:]))
        paths = sorted(cfg.store_dir.glob("transcripts-*/transcripts/*"))
        transcripts.append([path.read_bytes() for path in paths])
    assert len(requests[0]) == 48 + 64 and requests[0] == requests[1]
    assert len(transcripts[0]) == 2 and sorted(transcripts[0]) == sorted(transcripts[1])
    refuses = serve(lambda *_: (400, {}, b"no such model"))
    cfg = config(tmp_path / "no", methods=["consultancy"],
                 transcript_writer={**writer, "url": f"{refuses.base}/completions"})  # fmt: skip
    (tmp_path / "no.yaml").write_text(to_yaml(cfg))
    job = json.dumps(["run", "--config", str(tmp_path / "no.yaml"), "--quiet"])
    processes = ranks.start(__file__, 2, job)
    outputs = [p.communicate(timeout=120)[0] for p in processes]
    assert all(p.returncode == 2 for p in processes)
    assert all("HTTP 400: no such model" in text for text in outputs), outputs


def test_a_run_that_nobody_could_write_for_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("W2S_KEY", raising=False)
    endpoint = {"kind": "endpoint", "url": "http://127.0.0.1:9/completions", "model": "m",
                "key_variable": "W2S_KEY"}  # fmt: skip
    lm = {"source": "agreement-lm"}
    for changes, problem in (
        ({}, "student.source='bow' is none"),
        ({"student": lm}, "transcript_writer.max_tokens=256"),
        ({"transcript_writer": endpoint}, "'W2S_KEY': this variable is not set"),
    ):
        with pytest.raises(W2SError, match=problem):
            run(config(tmp_path, methods=["debate"], **changes))
    assert not any(tmp_path.glob("cache/*-*"))
    run(config(tmp_path, transcript_writer=endpoint))  # nobody is to write anything


def test_a_writer_with_a_chat_template_gets_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    from w2s_fast.tasks.datasets import agreement

    tokenizer = agreement.tokenizer()
    writer = LocalWriter(None, tokenizer, WriterConfig())
    assert writer._chat_prompt("the dog") == "the dog"
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [reply]"
    )
    assert writer._chat_prompt("the dog") == "[user] the dog [reply]"


if __name__ == "__main__":
    sys.exit(cli.main(json.loads(sys.argv[1])))
