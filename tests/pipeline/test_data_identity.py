"""A result is filed under the data that were read, whatever happens to the file meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.cluster import save_model
from helpers.task_data import local_config
from helpers.toy_run import config
from rich.console import Console

from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.pipeline import pool, run
from w2s_fast.pipeline.context import load_data, read_again
from w2s_fast.pipeline.job_identity import config_slice, data_digest, data_digests, input_digests
from w2s_fast.pipeline.jobs import plan_jobs
from w2s_fast.report.terminal import print_results

SIZES = {"weak": 20, "transfer": 24, "test": 20}


def write(path: Path, *, flip: bool = False, doc: int = 1) -> Path:
    """Write 90 rows whose text tells the class; flipped, the same texts have the other one."""
    rows = [f"t{i} {('bad', 'good')[i % 2]},{(i + flip) % 2},d{i // doc}" for i in range(90)]
    path.write_text("\n".join(["text,label,doc", *rows]) + "\n")
    return path


def local_run(out: Path, path: Path, **changes: Any) -> RunConfig:
    """A run on a file; its student is a checkpoint, which brings the tokenizer."""
    folder = path.parent / "student"
    if not folder.exists():
        save_model(folder)
    cfg = config(out, student={"source": str(folder)}, **changes)
    return replace(cfg, task=local_config(path, **{f"n_{k}": n for k, n in SIZES.items()}))


def scores(results: dict[str, Any]) -> list[Any]:
    """Return the rows of a run and the digests of its stages."""
    stages = results["provenance"]["stages"]
    return [results["runs"], {name: stage["digest"] for name, stage in stages.items()}]


def test_a_replaced_file_is_read_again_in_the_same_process(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv")
    cfg = local_run(tmp_path / "out", path)
    first = run(cfg)
    write(path, flip=True)
    flipped = run(cfg)
    stages = flipped["provenance"]["stages"]
    assert not any(stages[name]["reused"] for name in ("weak/0", "ceiling/0", "report"))
    other = local_run(tmp_path / "other", write(tmp_path / "flipped.csv", flip=True))
    assert scores(run(other)) == scores(flipped) != scores(first)
    write(path)
    again = run(cfg)
    assert scores(again) == scores(first)
    assert all(stage["reused"] for stage in again["provenance"]["stages"].values())


def test_a_worker_publishes_nothing_from_a_file_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels are flipped, and the texts kept, between the parent's reading and the workers'."""
    path = write(tmp_path / "rows.csv")
    cfg = local_run(tmp_path / "out", path, workers=2)
    send = pool._send

    def late(process: Any, message: Any) -> None:
        write(path, flip=True)
        send(process, message)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "_send", late)
        with pytest.raises(W2SError, match=r"rows\.csv.* changed while the run was reading"):
            run(cfg)
    assert not list(cfg.store_dir.glob("weak-*"))
    write(path)
    results = run(replace(cfg, workers=1))
    assert scores(results) == scores(run(local_run(tmp_path / "clean", path)))


def test_one_process_reads_its_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens to the file after the start of a run does not reach it."""
    path = write(tmp_path / "rows.csv")
    expected = scores(run(local_run(tmp_path / "expected", path)))
    execute = pool.execute

    def late(*args: Any) -> Any:
        write(path, flip=True)
        return execute(*args)

    monkeypatch.setattr(pool, "execute", late)
    assert scores(run(local_run(tmp_path / "out", path))) == expected


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_nothing_is_published_from_a_checkpoint_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Neither the student nor the weak model, a bag of words with the student's tokenizer."""
    cfg = local_run(tmp_path / "out", write(tmp_path / "rows.csv"))
    path = tmp_path / "student" / file
    before, execute = path.read_bytes(), pool.execute

    def late(*args: Any) -> Any:
        path.write_bytes(before)
        return execute(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "execute", late)
        with pytest.raises(W2SError, match=r"student changed while weak/0 was computed"):
            run(cfg)
    assert not list(cfg.store_dir.glob("weak-*"))
    assert len(run(cfg)["runs"]) == 1


def test_what_was_read_is_kept_by_its_content(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv")
    task = local_config(path, n_weak=20)
    first = load_data(task, 0)
    assert read_again(task, 0, data_digest(first)).weak.ids == first.weak.ids
    write(path, flip=True)
    second = load_data(task, 0)
    assert data_digest(second) != data_digest(first)
    kept = (read_again(task, 0, data_digest(data)) for data in (first, second))
    for data, expected in zip(kept, (first, second), strict=True):
        assert data.weak.labels.tolist() == expected.weak.labels.tolist()


def changed(cfg: RunConfig, **settings: Any) -> set[str]:
    """Return the stages whose inputs or settings change with settings of the task."""
    other = replace(cfg, task=replace(cfg.task, **settings))
    jobs = plan_jobs(cfg).jobs
    done = {job.name: "digest" for job in jobs}

    def facts(cfg: RunConfig) -> list[Any]:
        data = {0: data_digests(load_data(cfg.task, 0))}
        return [[config_slice(cfg, j, 2), input_digests(cfg, j, done, data, {})] for j in jobs]

    pairs = zip(jobs, facts(cfg), facts(other), strict=True)
    return {job.stage for job, before, after in pairs if before != after}


def test_precision_of_a_deepspeed_file_is_part_of_a_result(tmp_path: Path) -> None:
    """By its content: an edited file has the same name. What changes no number is left out."""
    path, cfg = tmp_path / "ds.json", config(tmp_path)
    train = replace(cfg.student_train, zero_stage=1, deepspeed_config=str(path))
    sharded = replace(cfg, student_train=train)
    (student,) = [job for job in plan_jobs(cfg).jobs if job.stage == "student"][:1]
    found = []
    for text in ("{}", '{"wall_clock_breakdown": true}', '{"data_types": {"a": "bf16"}}'):
        path.write_text(text)
        found.append(config_slice(sharded, student, 2))
    assert found[0] == found[1] == config_slice(cfg, student, 2) != found[2]


def test_groups_and_the_reading_of_answers_are_part_of_a_result(tmp_path: Path) -> None:
    """Groups decide which rows a training holds out; how an answer is read decides the scores."""
    cfg = config(tmp_path)
    rows = write(tmp_path / "rows.csv")
    sums = tmp_path / "sums.csv"
    sums.write_text(rows.read_text().replace("text,label", "prompt,answer"))
    answers = local_config(sums, name="local_answers")
    assert changed(replace(cfg, task=answers), read="number") == {"supervisor_card", "report"}
    asked = {"weak", "labels", "student", "ceiling"}
    assert changed(replace(cfg, task=answers), answer_tokens=3) == asked
    data = load_data(local_config(rows), 0)
    groups = tuple(f"other {g}" for g in data.transfer.groups)
    regrouped = replace(data, transfer=replace(data.transfer, groups=groups))
    before, after = data_digests(data), data_digests(regrouped)
    assert {key for key in before if before[key] != after[key]} == {"transfer.inputs"}


def test_a_run_warns_once_of_classes_that_look_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.csv")
    path.write_text(path.read_text().replace(",1,", ",Yes,").replace(",0,", ",yes,"))
    results = run(local_run(tmp_path / "out", path, seeds=[0, 1]))
    shown = " ".join("".join(capsys.readouterr()).split())
    assert shown.count("differ only in case or format") == 1
    counts = {k: {"Yes": n // 2, "yes": n // 2} for k, n in SIZES.items()}
    assert results["provenance"]["data"] == {"0": counts, "1": counts}
    print_results(results, Console(width=80))
    line = "rows by class (weak / transfer / test): 'Yes' 10 / 12 / 10, 'yes' 10 / 12 / 10"
    assert line in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<bdi dir="ltr">yes</bdi></th><td>10</td><td>12</td><td>10</td>' in page


def test_a_bag_of_words_does_not_depend_on_intermediate_models(tmp_path: Path) -> None:
    """It takes the student's tokenizer, and no file of the models between them."""
    cfg = local_run(tmp_path / "out", write(tmp_path / "rows.csv"))
    between = tmp_path / "between"
    save_model(between)
    stages = []
    for chain in ((), (str(between),)):
        methods = ("bootstrap",) if chain else ("naive",)
        results = run(replace(cfg, intermediate_models=chain, methods=methods))
        stages.append(results["provenance"]["stages"])
    assert stages[1]["weak/0"]["reused"] and stages[1]["labels/0"]["reused"]
    assert not stages[1]["report"]["reused"]
