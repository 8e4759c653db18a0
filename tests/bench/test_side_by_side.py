"""Other code bases on equal work: checkouts, environments, workers, inputs, rows and tables."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.generation_cases import checkpoint
from helpers.paths import ROOT
from safetensors.torch import load_file

from bench.side_by_side import command, inputs, workers
from bench.side_by_side.measures import row
from bench.side_by_side.systems import (
    OPENAI,
    OURS,
    SYSTEMS,
    US,
    check_checkout,
    package_digest,
)
from w2s_fast.errors import W2SError
from w2s_fast.losses import LOSSES
from w2s_fast.tasks.datasets.agreement import tokenizer as agreement_tokenizer

# A package with the signatures that scripts/openai.py calls; it trains a linear model of lengths.
STAND_IN = {
    "__init__": "",
    "common": "def get_tokenizer(name):\n    return str.split\n",
    "datasets": """
def tokenize_dataset(rows, tokenizer, max_ctx):
    rows = rows.map(lambda row: {"input_ids": list(range(len(tokenizer(row["txt"]))))})
    return rows.filter(lambda row: len(row["input_ids"]) < max_ctx)
""",
    "logger": """
import json, pathlib
path = None
def configure(save_path):
    global path
    pathlib.Path(save_path).mkdir()
    path = pathlib.Path(save_path, "log.jsonl")
def write(**values):
    with path.open("a") as out:
        out.write(json.dumps(values) + "\\n")
""",
    "loss": """
import torch
class xent_loss:
    def __call__(self, logits, labels, step_frac):
        return torch.nn.functional.cross_entropy(logits, labels)
class logconf_loss_fn(xent_loss):
    pass
""",
    "model": """
import torch
class TransformerWithHead(torch.nn.Linear):
    def save_pretrained(self, folder, safe_serialization=True):
        assert not safe_serialization, "the shim was not applied"
""",
    "train": """
import torch
from weak_to_strong import logger
from weak_to_strong.model import TransformerWithHead
class ModelConfig:
    def __init__(self, name, default_lr, eval_batch_size):
        pass
def train_and_save_model(config, train, test, *, batch_size, minibatch_size_per_device, lr,
                         lr_schedule, epochs, loss_fn, save_path, eval_every):
    model = TransformerWithHead(1, 2).to("cuda")
    lengths = lambda rows: torch.tensor([[float(len(ids))] for ids in rows["input_ids"]])
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    x, y = lengths(train), torch.tensor(train["soft_label"][:])
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        loss = loss_fn(model(x[part]), y[part], step_frac=start / len(x))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        logger.write(loss=loss.item())
    logger.write(eval_accuracy=0.5)
    model.save_pretrained(save_path)
    return [{"soft_label": p} for p in model(lengths(test)).softmax(1).tolist()], None
""",
}


def write_checkout(peers: Path, files: Mapping[str, str] = STAND_IN) -> Path:
    package = peers / OPENAI.folder / "weak_to_strong"
    package.mkdir(parents=True)
    for name, code in files.items():
        (package / f"{name}.py").write_text(code)
    return package.parent


def test_checkouts(tmp_path: Path) -> None:
    with pytest.raises(W2SError, match=r"weak-to-strong is no folder; expected a checkout of op"):
        check_checkout(OPENAI, tmp_path)
    folder = write_checkout(tmp_path)
    with pytest.raises(W2SError, match=r"another version of openai.* for commit 6b450f2cee"):
        check_checkout(OPENAI, tmp_path)
    same = replace(OPENAI, digest=package_digest(OPENAI, folder))
    assert check_checkout(same, tmp_path) == folder
    (folder / "weak_to_strong" / "more.py").write_text("")
    with pytest.raises(W2SError, match="another version"):
        check_checkout(same, tmp_path)
    (folder / "weak_to_strong" / "loss.py").write_text("class xent_loss:\n    pass\n")
    with pytest.raises(W2SError, match=r"loss.py does not define logconf_loss_fn; expected open"):
        check_checkout(same, tmp_path)
    (folder / "weak_to_strong" / "loss.py").write_text("class xent_loss(:\n")
    with pytest.raises(W2SError, match=r"loss.py cannot be read .* at commit 6b450f2"):
        check_checkout(same, tmp_path)
    (folder / "weak_to_strong" / "loss.py").unlink()
    with pytest.raises(W2SError, match=r"loss.py cannot be read"):
        check_checkout(same, tmp_path)


def test_versions_of_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = torch.__version__.partition("+")[0]
    pinned = tmp_path / "requirements.txt"
    monkeypatch.setattr(workers, "REQUIREMENTS", pinned)
    pinned.write_text(f"# comment\n\ntorch=={installed}\n")
    assert workers.check_versions(Path(sys.executable)) == {"torch": torch.__version__}
    pinned.write_text(f"torch=={installed}\nnumpy==0.1\nnot-a-package==2\n")
    expected = (
        rf"numpy {np.__version__} \(expected 0.1\), not-a-package missing \(expected 2\): "
        r".*pip install -r .*requirements.txt"
    )
    with pytest.raises(W2SError, match=expected):
        workers.check_versions(Path(sys.executable))
    with pytest.raises(W2SError, match="--python .*absent does not run"):
        workers.check_versions(tmp_path / "absent")


def test_pins_are_exact_and_torch_is_ours() -> None:
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"torch=={workers.pins()['torch']}" in constraints
    assert all(version[0].isdigit() for version in workers.pins().values())


def test_an_environment_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        workers.sys, "executable", str(program(tmp_path, "echo broken >&2; exit 3"))
    )
    with pytest.raises(W2SError, match=r"exit code 3; make the environment yourself.*\nbroken"):
        workers.make_environment(tmp_path / "venv")


def program(folder: Path, script: str) -> Path:
    """Write a shell script that stands for an interpreter: $3 is the job, $4 the result."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    inputs._write_lines(tmp_path / "test.jsonl", [("a", 0), ("b", 1)])
    return {
        "system": "openai", "loss": "xent", "threads": 1, "max_length": 9,
        "out": str(tmp_path / "7" / "openai-xent"), "test": str(tmp_path / "test.jsonl"),
    }  # fmt: skip


def run_program(job: dict[str, Any], folder: Path, script: str, limit_s: float = 60) -> Any:
    return workers.run_job(job, program(folder, script), [], folder, limit_s)


def test_workers_that_fail(job: dict[str, Any], tmp_path: Path) -> None:
    noise = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do echo line $i; done; "
    with pytest.raises(W2SError, match=r"7-openai-xent: the worker ended with exit code 3") as e:
        run_program(job, tmp_path, noise + r"printf '10%% 1/9 [9it/s]\rlast\n' >&2; exit 3")
    assert "line 3\n" in str(e.value) and str(e.value).endswith("line 13\nlast")
    assert "line 2\n" not in str(e.value) and "it/s" not in str(e.value)
    with pytest.raises(W2SError, match=r"ended with exit code 0; its last lines .*\nno result"):
        run_program(job, tmp_path, "echo no result")
    with pytest.raises(W2SError, match=r"took more than 1 s; its last lines .*\nslow"):
        run_program(job, tmp_path, "echo slow; exec sleep 60", limit_s=1)
    with pytest.raises(W2SError, match=r"7-openai-xent: .*absent does not run"):
        workers.run_job(job, tmp_path / "absent", [], tmp_path, 60)


def test_results_of_a_worker(job: dict[str, Any], tmp_path: Path) -> None:
    seen = """printf '{"probabilities": [0, 1], "path": "%s", "hub": "%s"}' """
    result = run_program(job, tmp_path, seen + '"$PYTHONPATH" "$HF_HUB_OFFLINE" > "$4"')
    assert result["path"] == str(ROOT) and result["hub"] == "1"
    assert result["process_s"] > 0 and result["load"] >= 0
    with pytest.raises(W2SError, match=r"predicted 1 of 2 test rows; rows of 9 tokens or more"):
        run_program(job, tmp_path, """echo '{"probabilities": [0]}' > "$4" """)
    with pytest.raises(W2SError, match=r"exit code 0"):  # an older result does not count
        run_program(job, tmp_path, "true")


def test_a_relative_interpreter(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, """echo '{"probabilities": [0, 1]}' > "$4" """)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    assert workers.run_job(job, Path("python"), [], Path("out"), 60)["probabilities"] == [0, 1]


def test_row_of_a_training(tmp_path: Path) -> None:
    inputs._write_lines(tmp_path / "test.jsonl", [("a", 0), ("b", 1), ("c", 1), ("d", 0)])
    ends = [[0.0, 0.0], *([float(i), i / 2] for i in range(1, 5)), [5.25, 2.6], [5.5, 2.7]]
    result = {
        "probabilities": [0.2, 0.9, 0.4, 0.6], "losses": [0.7, 0.5], "step_ends_s": ends,
        "process_s": 9.0, "load": 1.5, "rss_start_mib": 100.0, "rss_peak_mib": 130.0,
    }  # fmt: skip
    ours = {**result, "probabilities": [0.2, 0.9, 0.6, 0.6], "losses": [0.7, 0.75]}
    got = row("openai", "xent", 3, result, ours, tmp_path / "test.jsonl")
    assert got["accuracy"] == 0.5 and got["agreement"] == 0.75
    assert got["loss_gap"] == 0.25 and got["probability_gap"] == pytest.approx(0.2)
    # The first five steps are left out of the median, not of the whole.
    assert got["step_ms"] == 750.0 and got["step_cpu_ms"] == pytest.approx(350.0)
    assert got["train_s"] == 5.5 and got["train_cpu_s"] == 2.7
    assert got["peak_mib"] == 130 and got["added_mib"] == 30 and got["losses"] == [0.7, 0.5]


def test_cells_pair_every_loss_with_ours() -> None:
    cells = command.cells(inputs.AGREEMENT, 0)
    assert len(cells) == len(set(cells)) == 8
    for name, loss in cells:
        assert (OURS, SYSTEMS[name].losses[loss]) in cells
        assert SYSTEMS[name].losses[loss] in LOSSES
    assert cells[0] != command.cells(inputs.AGREEMENT, 1)[0]
    assert sorted(cells) == sorted(command.cells(inputs.AGREEMENT, 1))
    assert ("openai", "xent") not in command.cells(inputs.MICRO_BATCHES, 0)
    assert (OURS, "logconf") not in command.cells(inputs.SST2, 0)


@pytest.mark.parametrize("setting", [inputs.AGREEMENT, inputs.MICRO_BATCHES, inputs.SST2])
def test_all_code_bases_take_as_many_steps(setting: inputs.Setting) -> None:
    for each in (setting, inputs.quick(setting)):
        assert each.n_transfer % each.batch_size == 0 == each.batch_size % each.micro_batch_size
        assert each.steps * each.batch_size == each.n_transfer * each.epochs


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    source = checkpoint("llama", folder / "lm", agreement_tokenizer())
    return inputs.portable_student(source, folder / "student")


def test_the_student_of_all(student: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    source = student.parent / "lm"
    weights, before = load_file(student / inputs.WEIGHTS), load_file(source / inputs.WEIGHTS)
    assert set(weights) == {*before, "score.weight"}
    assert not weights["score.weight"].any()
    assert all(torch.equal(weights[name], before[name].float()) for name in before)
    model = AutoModelForSequenceClassification.from_pretrained(student)
    assert not model.score.weight.any() and model.config.num_labels == 2
    lm, plain = (AutoModelForCausalLM.from_pretrained(f) for f in (student, source))
    assert all(torch.equal(p, q) for p, q in zip(lm.parameters(), plain.parameters(), strict=True))
    config = json.loads((student / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["dtype"] == config["torch_dtype"] == "float32"
    kind = json.loads((student / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert kind == "PreTrainedTokenizerFast"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "a model of type 'gpt2' with rotary positions 'default'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "type 'llama' with rotary positions 'yarn'"),
        ({"rope_scaling": {"factor": 2}}, "expected 'llama' and 'default'"),
    ],
)
def test_students_that_not_all_can_load(
    student: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = json.loads((student / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(W2SError, match=message):
        inputs.portable_student(tmp_path, tmp_path / "copy")


def test_students_that_are_not_there(student: Path, tmp_path: Path) -> None:
    with pytest.raises(W2SError, match=r"config.json cannot be read .* folder of a checkpoint"):
        inputs.portable_student(tmp_path, tmp_path / "copy")
    (tmp_path / "config.json").write_text((student / "config.json").read_text())
    with pytest.raises(W2SError, match=r"has no model.safetensors; expected the weights in one"):
        inputs.portable_student(tmp_path, tmp_path / "copy")


SMALL = replace(inputs.quick(inputs.AGREEMENT), epochs=2, batch_size=64, micro_batch_size=64)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weak labels of the agreement task, computed by the weak model of the pipeline."""
    out = tmp_path_factory.mktemp("rows")
    inputs.write_rows(SMALL, [3], None, out)
    return out


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_rows_of_all(rows: Path) -> None:
    train, test = read(rows / "3" / "train.jsonl"), read(rows / "3" / "test.jsonl")
    n = SMALL.n_transfer
    first, second = ([row["txt"] for row in part] for part in (train[:n], train[n:]))
    assert len(set(first)) == n and sorted(first) == sorted(second) and first != second
    pairs = np.array([row["soft_label"] for row in train])
    assert (pairs == pairs.astype(np.float32)).all(), "all are fp32 numbers"
    assert (np.float32(1) - pairs[:, 1].astype(np.float32) == pairs[:, 0]).all()
    assert [row["labels"] for row in train] == pairs[:, 1].tolist()
    assert ((pairs > 0) & (pairs < 1)).all(), "weak labels are soft"
    by_text = {row["txt"]: row["labels"] for row in train}
    assert all(by_text[row["txt"]] == row["labels"] for row in train)
    assert {row["labels"] for row in test} == {0.0, 1.0} and len(test) == SMALL.n_test
    assert all(row["hard_label"] == row["soft_label"][1] for row in test)


@pytest.mark.slow
def test_real_workers_on_equal_work(student: Path, rows: Path, tmp_path: Path) -> None:
    """Ours, and a stand-in for openai/weak-to-strong; then the rows and the tables of both."""
    checkout = write_checkout(tmp_path)
    results = {}
    for system, paths in ((OPENAI, [checkout]), (US, [])):
        job = inputs.job(SMALL, system.name, "xent", 3, student, rows)
        results[system.name] = workers.run_job(job, Path(sys.executable), paths, tmp_path, 200)
    lines = [
        row(name, "xent", 3, result, results[OURS], rows / "3" / "test.jsonl")
        for name, result in results.items()
    ]
    for line in lines:
        assert len(line["losses"]) == SMALL.steps == 6
        assert 0 < line["step_cpu_ms"] < line["process_s"] * 1e3 and line["train_s"] > 0
        assert line["peak_mib"] > line["added_mib"] > 0
    openai, ours = lines
    assert ours["losses"][0] == pytest.approx(np.log(2), abs=1e-6), "the head begins at 0"
    assert ours["losses"][-1] != ours["losses"][0]
    assert openai["loss_gap"] > 0.01 and ours["loss_gap"] == 0


PEERS_FOLDER = os.environ.get("W2S_PEERS")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 13 processes, and an environment where none is given
@pytest.mark.skipif(
    PEERS_FOLDER is None,
    reason="W2S_PEERS names no folder of checkouts (and W2S_PEERS_PYTHON their interpreter)",
)
def test_the_real_code_bases_give_the_same_losses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = os.environ.get("W2S_PEERS_PYTHON")
    given = ["--python", python] if python else []
    args = ["--peers", str(PEERS_FOLDER), *given, "--quick", "--out", str(tmp_path)]
    assert command.main(args) == 0, capsys.readouterr().err
    measured = [json.loads(s) for s in capsys.readouterr().out.splitlines() if s[:1] == "{"]
    assert len(measured) == 8 + 5
    whole = [line for line in measured if line["name"] == "agreement"]
    assert {line["system"] for line in whole} == {"openai", "eleuther", "ours"}
    assert max(line["loss_gap"] for line in whole) < 1e-5
    assert min(line["agreement"] for line in whole) > 0.9


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--record", "--quick"], "--record needs a clean tree, no --quick"),
        (["--student", "x"], "--student and --sst2 belong together"),
        (["--sst2", "x"], "--student and --sst2 belong together"),
        (["--sst2", "x", "--student", "x"], "--sst2 x is no file; expected rows of text TAB label"),
        ([], "weak-to-strong is no folder"),
    ],
)
def test_bad_input(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--peers", str(tmp_path), *args]) == 2
    assert message in capsys.readouterr().err
