"""A weak critic: what it reads and writes, who it is, and what becomes of its critique."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ranks
from helpers.endpoint import KEY, chat
from helpers.method_plans import evaluate, two

from w2s_fast.cli import main as cli
from w2s_fast.config import RunConfig, from_dict, to_yaml
from w2s_fast.debate import CriticConfig, make_protocol
from w2s_fast.errors import W2SError
from w2s_fast.methods import Plan, make_method
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import read_probs, read_texts
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.job_identity import config_slice
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.tasks import TaskConfig

pytest_plugins = ("helpers.endpoint",)
TINY = {"hidden": 16, "layers": 1, "heads": 2, "steps": 4}


class Scripted:
    """A writer that records its prompts and seeds."""

    def __init__(self, text: str = "text") -> None:
        self.prompts: list[str] = []
        self.seeds: list[int] = []
        self.text = text

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        self.prompts += prompts
        self.seeds += seeds
        return [self.text for _ in prompts]


def test_the_strong_model_argues_for_its_own_answer() -> None:
    own = np.array([[0.9, 0.1], [0.2, 0.8]])
    writer = Scripted("because.")
    out = make_protocol("answer").transcripts(
        ["Is ice cold?", "?"], ["r0", "r1"], ("no", "yes"), writer, 0, own
    )
    assert out == ['Adviser, for "no": because.', 'Adviser, for "yes": because.']
    with pytest.raises(W2SError, match="needs the predictions"):
        make_protocol("answer").transcripts(["?"], ["r"], ("no", "yes"), writer, 0)


def test_the_critic_reads_item_and_reasons_and_adds_a_turn() -> None:
    before = ['Adviser, for "no": it floats.', 'Adviser, for "yes": it melts.']
    writer = Scripted(' Critic: look at the density.\n\nAdviser, for "no": I agree.')
    out = make_protocol("critique").transcripts(
        [" Is ice light? ", "?"], ["r0", "r1"], ("no", "yes"), writer, 3, before=before
    )
    assert out == [f"{text}\nCritic: look at the density." for text in before]
    first = writer.prompts[0]
    assert "Item:\nIs ice light?\n" in first and f"Reasons:\n{before[0]}" in first
    assert first.endswith("\n\nCritic:") and "no verdict of your own" in first
    assert len(set(writer.seeds)) == 2
    again = Scripted()
    make_protocol("critique").transcripts(["?"], ["r1"], ("no", "yes"), again, 3, before=["x"])
    assert again.seeds == writer.seeds[1:], "a function of seed and row"
    with pytest.raises(W2SError, match="Critique needs transcripts to criticise"):
        make_protocol("critique").transcripts(["?"], ["r"], ("no", "yes"), writer, 0)


def test_other_protocols_continue_transcripts_too() -> None:
    writer = Scripted()
    (out,) = make_protocol("consultancy").transcripts(
        ["?"], ["r"], ("no", "yes"), writer, 0, before=["so far this"]
    )
    assert out.startswith("so far this\nAdviser, for ") and "so far this" in writer.prompts[0]


# Plans.


def test_the_student_revises_after_the_critique_of_its_answer() -> None:
    p = Plan()
    node = make_method("critique:members=2").labels(p, p.weak_labels())
    names, priors = zip(*node.needs[1:], strict=True)
    assert names == ("member0", "member1")
    for number, prior in enumerate(priors):
        critique = dict(prior.needs)["context"]
        reasons = dict(critique.needs)["before"]
        settings = {"split": "transfer", "member": number}
        assert prior == p.prior(context=critique) != p.prior()
        assert dict(critique.settings) == {"role": "weak", "protocol": "critique", **settings}
        assert dict(reasons.settings) == {"role": "student", "protocol": "answer", **settings}
        assert dict(reasons.needs) == {"weak": p.prior()}
    served = Plan(writer=None, critic=None).critiques("weak")
    assert dict(served.settings)["role"] is None and dict(served.settings)["split"] == "weak"


def test_the_judge_reads_critiques_in_training_and_labelling() -> None:
    p = Plan()
    node = make_method("critique:use=judge").labels(p, p.weak_labels())
    labels = node.needs[1][1]
    assert dict(labels.needs)["context"] == p.critiques()
    model = dict(labels.needs)["model"]
    assert dict(model.needs)["context"] == p.critiques("weak") and model.stage == "weak"


def test_answers_are_shifted_to_the_balance_of_the_labels_and_pooled() -> None:
    p = Plan()
    node = make_method("critique:members=2").labels(p, p.weak_labels())
    one, other = (n for _, n in node.needs[1:])
    given = {
        p.weak_labels(): two(0.3, 0.7, weight=[1, 2]),
        one: two(0.8, 0.9),
        other: two(0.6, 0.9),
    }
    out = evaluate(node, given)

    def shifted(a: float, b: float) -> float:  # odds ratio kept, mean 1/2
        ratio = np.sqrt(b / (1 - b) / (a / (1 - a)))
        return ratio / (1 + ratio)

    expected = (shifted(0.8, 0.9) + shifted(0.6, 0.9)) / 2
    assert out.probs[:, 1] == pytest.approx([1 - expected, expected], abs=1e-5)
    assert out.weight.tolist() == [1, 2]
    plain = make_method("critique:members=2,calibrate=none").labels(p, p.weak_labels())
    assert evaluate(plain, given).probs[:, 1] == pytest.approx([0.7, 0.9])
    judged = make_method("critique:members=2,use=judge").labels(p, p.weak_labels())
    a, b = (n for _, n in judged.needs[1:])
    labels = {p.weak_labels(): given[p.weak_labels()], a: two(0.8, 0.9), b: two(0.6, 0.9)}
    assert evaluate(judged, labels).probs[:, 1] == pytest.approx([0.7, 0.9]), "labels stay"


# Runs.


def config(out: Path, **changes: Any) -> RunConfig:
    recipe = {"epochs": 4, "lr": 0.1, "batch_size": 16}
    values = {
        "task": {"n_weak": 24, "n_transfer": 30, "n_test": 40, "pretrain": TINY},
        "weak": {"source": "bow"}, "student": {"source": "agreement-lm"},
        "weak_train": recipe, "student_train": {"epochs": 1}, "losses": ["xent"], "seeds": [0],
        "output_dir": str(out), "workers": 1, "threads": 1,
    }  # fmt: skip
    return from_dict({**values, **changes})


def test_settings_of_the_critic_change_its_texts_alone() -> None:
    def slices(**critic: Any) -> dict[str, Any]:
        base = {"kind": "endpoint", "url": "http://x/completions", "model": "m", **critic}
        cfg = config(Path("unused"), methods=["critique"], critic_writer=base)
        jobs = [j for j in plan_jobs(cfg).jobs if j.stage == "transcripts"]
        return {dict(j.settings)["protocol"]: config_slice(cfg, j, 2) for j in jobs}

    plain, other = slices(), slices(temperature=0.0)
    assert plain["answer"] == other["answer"] and plain["critique"] != other["critique"]
    assert plain["critique"] == slices(workers=1, retries=0)["critique"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, "a method needs the weak's language model .*critic_writer.kind=endpoint"),
        ({"weak": {"source": "agreement-lm"}}, "critic_writer.max_tokens=256: the weak's language"),
        ({"critic_writer": {"kind": "phone"}}, "critic_writer.kind='phone'"),
        (
            {"critic_writer": {"kind": "endpoint", "url": "http://127.0.0.1:9/completions",
                               "model": "m", "key_variable": "NO_SUCH_KEY"}},
            "'NO_SUCH_KEY': this variable is not set",
        ),
        ({"student": {"source": "bow"}}, "student.source='bow' is none"),
    ],
)  # fmt: skip
def test_a_run_without_a_critic_is_refused_at_once(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(W2SError, match=problem):
        run(config(tmp_path, methods=["critique"], transcript_writer={"max_tokens": 6}, **changes))
    assert not any(tmp_path.glob("cache/*-*"))


@pytest.mark.slow
def test_local_writers_and_the_texts_that_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import w2s_fast.training

    asked: list[list[str]] = []
    real = w2s_fast.training.next_token_probs

    def recording(model: Any, tokenizer: Any, texts: list[str], words: Any) -> Any:
        asked.append(list(texts))
        return real(model, tokenizer, texts, words)

    monkeypatch.setattr(w2s_fast.training, "next_token_probs", recording)
    cfg = config(
        tmp_path, methods=["naive", "critique", "critique:use=judge"],
        weak={"source": "agreement-lm"}, transcript_writer={"max_tokens": 6},
        critic_writer={"max_tokens": 5},
    )  # fmt: skip
    results = run(cfg)
    assert results["gold"] == []
    stages = results["provenance"]["stages"]
    texts = [
        read_texts(cfg.store_dir / stage["folder"] / "transcripts")
        for name, stage in stages.items()
        if name.startswith("transcripts/")
    ]
    assert sorted(map(len, texts)) == [24, 24, 30, 30], "shared by both methods"
    whole = next(t for t in texts if len(t) == 30 and "\nCritic: " in next(iter(t.values())))
    data = load_data(cfg.task, 0).transfer
    revised = next(a for a in asked if len(a) == 30 and "Critic:" in a[0])
    for question, text, item in zip(revised, data.texts, data.ids, strict=True):
        assert f"{text}\n\n{whole[item]}" in question
    assert len({r["student"] for r in results["runs"]} | {0}) > 1


@pytest.mark.slow
def test_a_critic_that_knows_makes_better_labels(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the number of the subject in 90 % of its critiques; the judge learns to read it."""
    monkeypatch.setenv("W2S_KEY", KEY)
    sizes = {"n_weak": 200, "n_transfer": 300, "n_test": 100, "pretrain": TINY}
    data = load_data(TaskConfig(**sizes), 0)  # type: ignore[arg-type]
    gold = {
        t: int(y)
        for split in (data.weak, data.transfer)
        for t, y in zip(split.texts, split.labels, strict=True)
    }

    def knowing(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        prompt = body["messages"][0]["content"]
        if "Critic:" not in prompt:
            return 200, {}, chat("so it is")
        item = prompt.split("Item:\n")[1].split("\n")[0]
        return 200, {}, chat(("this one", "these all")[gold[item] ^ (body["seed"] % 10 == 0)])

    server = serve(knowing)
    writer = {"kind": "endpoint", "url": f"{server.base}/chat/completions", "model": "m",
              "key_variable": "W2S_KEY", "workers": 1}  # fmt: skip
    spec = "critique:use=judge"
    cfg = config(tmp_path, task=sizes, methods=["naive", spec], transcript_writer=writer,
                 critic_writer={**writer, "model": "weak"})  # fmt: skip
    results = run(cfg)
    assert sorted({r["model"] for r in server.requests}) == ["m", "weak"]
    assert len(server.requests) == 2 * 500 and set(server.keys) == {f"Bearer {KEY}"}
    stages = results["provenance"]["stages"]

    def right(name: str) -> float:
        labels = cfg.store_dir / stages[name]["folder"] / "labels"
        probs = read_probs(labels, data.transfer.ids, 2)
        return float((probs.argmax(1) == data.transfer.labels).mean())

    assert right(f"apply/0/{spec}+xent/1") > right("labels/0") + 0.05
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_ask_for_what_one_asks(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda _, body: (200, {}, chat(f"the {['dog', 'cat'][body['seed'] % 2]}")))
    writer = {"kind": "endpoint", "url": f"{server.base}/chat/completions", "model": "strong"}
    transcripts, requests = [], []
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        cfg = config(folder / "out", methods=["critique"], transcript_writer=writer,
                     critic_writer=writer)  # fmt: skip
        (folder / "run.yaml").write_text(to_yaml(cfg))
        before = len(server.requests)
        ranks.run(__file__, size, ["run", "--config", str(folder / "run.yaml"), "--quiet"])
        requests.append(sorted(json.dumps(r) for r in server.requests[before:]))
        paths = sorted(cfg.store_dir.glob("transcripts-*/transcripts/*"))
        transcripts.append([path.read_bytes() for path in paths])
    assert len(requests[0]) == 2 * 30 and requests[0] == requests[1]
    assert len(transcripts[0]) == 2 and sorted(transcripts[0]) == sorted(transcripts[1])


def test_the_config_names_itself() -> None:
    with pytest.raises(W2SError, match="critic_writer.url is given|critic_writer.*url"):
        CriticConfig(url="http://x/completions")


if __name__ == "__main__":
    sys.exit(cli.main(json.loads(sys.argv[1])))
