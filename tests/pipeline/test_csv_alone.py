"""A run of a CSV file and nothing else: its tokenizer is made from the texts and kept with it."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ranks
from helpers.paths import ROOT
from helpers.task_data import local_config
from helpers.toy_run import config

from w2s_fast.cli import main as cli
from w2s_fast.cli.parse import load_config
from w2s_fast.config import RunConfig, to_yaml, validate
from w2s_fast.errors import W2SError
from w2s_fast.files import tree_hash
from w2s_fast.models.text_tokenizer import read_tokenizer
from w2s_fast.pipeline import run
from w2s_fast.pipeline.artifacts import TOKENIZER
from w2s_fast.pipeline.context import Context, load_data
from w2s_fast.pipeline.experiment import open_session
from w2s_fast.pipeline.export import export
from w2s_fast.pipeline.job_identity import data_digests, input_digests
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.pipeline.stages.build_model import trained_model
from w2s_fast.tasks import Examples
from w2s_fast.training import encode, predict

SCRATCH = {"source": "scratch", "hidden": 16, "heads": 2, "pooling": "mean"}
SIZES = {"n_weak": 40, "n_transfer": 48, "n_test": 40}


def write(folder: Path, text: str = "a {} film, number {}") -> Path:
    """Write 160 rows whose text tells the class."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f'"{text.format(("poor", "great")[i % 2], i)}",{i % 2}' for i in range(160)]
    path = folder / "reviews.csv"
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def csv_run(folder: Path, path: Path, **changes: Any) -> RunConfig:
    cfg = config(folder, **{"student": SCRATCH, **changes})
    return dataclasses.replace(cfg, task=local_config(path, **SIZES))


def stages(results: dict[str, Any]) -> dict[str, str]:
    return {name: s["digest"] for name, s in results["provenance"]["stages"].items()}


def test_it_runs_and_is_the_same_in_workers_and_again(tmp_path: Path) -> None:
    path = write(tmp_path)
    cfg = csv_run(tmp_path / "one", path, seeds=[0, 1])
    results = run(cfg)
    assert len(results["runs"]) == 2 and results["runs"][0]["weak"] > 0.7
    assert {"tokenizer/0", "tokenizer/1"} < stages(results).keys()
    workers = dataclasses.replace(cfg, output_dir=str(tmp_path / "two"), workers=2)
    assert stages(run(workers)) == stages(results)
    again = run(cfg)["provenance"]["stages"]
    assert all(stage["reused"] for stage in again.values())


def test_each_model_depends_on_the_tokenizer_and_the_tokenizer_on_no_test_text(
    tmp_path: Path,
) -> None:
    cfg = csv_run(tmp_path / "out", write(tmp_path))
    jobs = {job.name: job for job in plan_jobs(cfg).jobs}
    for name in ("weak/0", "labels/0", "student/0/xent", "ceiling/0"):
        assert ("tokenizer", "tokenizer/0") in jobs[name].inputs
    data = load_data(cfg.task, 0)
    for split, changes in (("weak", True), ("transfer", True), ("test", False)):
        rows: Examples = getattr(data, split)
        other = dataclasses.replace(rows, texts=(*rows.texts[:-1], "another text"))
        labels = dataclasses.replace(rows, labels=1 - rows.labels)
        keys = [
            input_digests(cfg, jobs["tokenizer/0"], {}, {0: data_digests(d)}, {})
            for d in (
                data,
                dataclasses.replace(data, **{split: other}),
                dataclasses.replace(data, **{split: labels}),
            )
        ]
        assert (keys[0] != keys[1]) == changes and keys[0] == keys[2]


def test_the_tokenizer_learns_nothing_from_the_test_texts(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "test").mkdir()
    test = write(tmp_path / "test", text="a {} film, quixotic {}")
    cfg = csv_run(tmp_path / "out", path)
    run(dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, test_path=str(test))))
    (folder,) = (tmp_path / "out" / "cache").glob("tokenizer-*")
    vocabulary = read_tokenizer(folder / TOKENIZER).get_vocab()
    assert any("number" in token for token in vocabulary)
    assert not any("qui" in token for token in vocabulary)


def test_a_checkpoint_brings_its_own_tokenizer(tmp_path: Path) -> None:
    """No tokenizer is made where a model or the task has one."""
    (tmp_path / "student").mkdir()
    folder = {"source": str(tmp_path / "student")}
    cfg = csv_run(tmp_path / "out", write(tmp_path), student=folder)
    assert not any(job.stage == "tokenizer" for job in plan_jobs(cfg).jobs)
    assert not any(job.stage == "tokenizer" for job in plan_jobs(config(tmp_path)).jobs)
    middle = csv_run(tmp_path / "out", write(tmp_path), intermediate_models=[folder["source"]],
                     methods=["bootstrap"])  # fmt: skip
    inputs = {job.name: dict(job.inputs) for job in plan_jobs(middle).jobs}
    assert "tokenizer" in inputs["weak/0"] and "tokenizer" in inputs["student/0/bootstrap+xent"]
    intermediate = next(name for name in inputs if name.startswith("intermediate"))
    assert "tokenizer" not in inputs[intermediate]


def test_a_stored_student_and_its_export_tokenize_alike(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    cfg = csv_run(tmp_path / "out", write(tmp_path))
    run(cfg)
    with open_session(cfg, quiet=True) as session:
        jobs = {job.name: job for job in plan_jobs(cfg).jobs}
        assert all(session.take_stored(job) for job in list(jobs.values())[:-1])
        item = session.work_item(jobs["student/0/xent"])
        folders = {name: Path(path) for name, path in item.folders.items()}
        ctx = Context(cfg, item.job, folders, lambda *_: None, session.read)
        stored = session.results["student/0/xent"].path
        model, tokenizer = trained_model(ctx, stored)
        rows = session.data[0].test.inputs
        expected = predict(model, encode(tokenizer, rows, 64))
    export(cfg, "student/0/xent", tmp_path / "exported")
    base = AutoModel.from_pretrained(tmp_path / "exported")
    again = AutoTokenizer.from_pretrained(tmp_path / "exported")
    head = load_file(tmp_path / "exported" / "head.safetensors")
    assert again(list(rows.texts))["input_ids"] == tokenizer(list(rows.texts))["input_ids"]
    for row, text in enumerate(rows.texts[:5]):
        hidden = base(**again(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        probs = (head["weight"] @ hidden + head["bias"]).softmax(0)
        assert np.allclose(probs.detach().numpy(), expected[row], atol=1e-5)


@pytest.mark.slow
def test_tasks_of_every_kind_run_without_a_checkpoint(tmp_path: Path) -> None:
    pairs = [{"chosen": f"Number {i}, gladly.", "rejected": f"No, not {i}."} for i in range(90)]
    answers = [{"prompt": f"What is {i} + 1?", "answer": f" {i + 1}"} for i in range(90)]
    sizes = {"n_weak": 20, "n_transfer": 20, "n_test": 20, "answer_tokens": 4}
    for name, rows, weak in (
        ("pairs", pairs, {"source": "bow"}),
        ("local_answers", answers, SCRATCH),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        cfg = config(tmp_path / name, weak=weak, student=SCRATCH)
        cfg = dataclasses.replace(cfg, task=local_config(path, name=name, **sizes))
        assert len(run(cfg)["runs"]) == 1


@pytest.mark.slow
@pytest.mark.dist
def test_ranks_and_zero_stages_have_the_tokenizer_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    digests = []
    for size, stage in ((1, 0), (2, 2), (2, 3)):
        out = tmp_path / f"{size}-{stage}"
        train = {"epochs": 1, "lr": 1e-3, "batch_size": 16, "zero_stage": stage}
        weak_train = {**train, "zero_stage": 0}
        cfg = csv_run(
            out, write(tmp_path), weak=SCRATCH, weak_train=weak_train, student_train=train
        )
        file = tmp_path / "run.yaml"
        file.write_text(to_yaml(cfg))
        ranks.run(__file__, size, ["run", "--config", str(file), "--quiet"])
        assert len(json.loads((out / "results.json").read_text())["runs"]) == 1
        (folder,) = (out / "cache").glob("tokenizer-*")
        digests.append((folder.name, tree_hash(folder / TOKENIZER)))
    assert len(set(digests)) == 1


def test_the_command_of_the_quick_start_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "quick_start.md").read_text()
    (command,) = re.findall(
        r"^w2s-fast (run --task\.name local (?:.*\\\n)*.*)$", page, re.MULTILINE
    )
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    sizes = [f"--task.{name}={size}" for name, size in SIZES.items()]
    more = ["--seeds=0", "--losses=xent", "--workers=1", "--threads=1", "--quiet"]
    assert cli.main([*shlex.split(command.replace("\\\n", "")), *sizes, *more]) == 0
    assert "xent" in capsys.readouterr().out and (tmp_path / "out" / "results.json").is_file()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--task", "local"], "'task'; it is a block of settings, such as 'task.name'"),
        (
            ["--task.name", "local", "--task.path", "reviews.csv"],
            "--student.source bow --student_train.lr 0.1",
        ),
    ],
)
def test_the_line_says_which_options_to_give(args: list[str], words: str) -> None:
    with pytest.raises(W2SError) as caught:
        validate(load_config(args))
    assert words in str(caught.value) and "\n" not in str(caught.value)


if __name__ == "__main__":
    sys.exit(cli.main(json.loads(sys.argv[1])))
