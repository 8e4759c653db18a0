"""Exported models predict as in their run, and say what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.locales import ascii_locale
from helpers.toy_run import config

import w2s_fast
from w2s_fast.cli.main import main
from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.pipeline.artifacts import read_probs
from w2s_fast.pipeline.export import export
from w2s_fast.pipeline.exported import load_exported
from w2s_fast.tasks import get_task

STUDENT = "student/0/confident:low=0.4,high=0.6+xent"


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run of two methods."""
    scratch = {"source": "scratch", "hidden": 8, "heads": 2, "head_init": "small"}
    scratch |= {"dtype": "bf16", "pooling": "mean"}  # neither is the default
    out = tmp_path_factory.mktemp("run") / "out"
    cfg = config(out, student=scratch, methods=["naive", "confident:low=0.4,high=0.6"])
    w2s_fast.run(cfg)
    return cfg


@pytest.fixture(scope="module")
def folder(cfg: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "student"
    export(cfg, STUDENT, path)
    return path


@pytest.fixture(scope="module")
def texts(cfg: RunConfig) -> tuple[str, ...]:
    return get_task(cfg.task.name).load(cfg.task, 0).test.texts


def stored(cfg: RunConfig) -> np.ndarray:
    """The run's own predictions of the test items."""
    results = json.loads((Path(cfg.output_dir) / "results.json").read_text())
    stage = cfg.store_dir / results["provenance"]["stages"][STUDENT]["folder"]
    ids = get_task(cfg.task.name).load(cfg.task, 0).test.ids
    return read_probs(stage / "test.parquet", ids, 2)


def test_predictions_are_those_of_the_run(
    cfg: RunConfig, folder: Path, texts: tuple[str, ...]
) -> None:
    model = load_exported(folder, "cpu")
    assert np.array_equal(model.predict(texts), stored(cfg))
    assert model.class_names == ("singular", "plural")


def test_a_reward_model_compares_two_texts(tmp_path: Path) -> None:
    rows = [{"chosen": f"good answer {i}", "rejected": f"bad answer {i}"} for i in range(90)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "pairs", "path": str(data), "n_weak": 20, "n_transfer": 30, "n_test": 20}
    scratch = {"source": "scratch", "hidden": 8, "heads": 2}
    cfg = config(tmp_path / "out", task=task, student=scratch)
    w2s_fast.run(cfg)
    export(cfg, "student/0/xent", tmp_path / "model")
    model = load_exported(tmp_path / "model", "cpu")
    one = model.predict(["good answer 1"], ["bad answer 1"])
    other = model.predict(["bad answer 1"], ["good answer 1"])
    assert np.allclose(one, other[:, ::-1], atol=1e-6) and not np.allclose(one, 0.5)
    with pytest.raises(W2SError, match="pairs is missing; a reward model compares two"):
        model.predict(["good answer 1"])


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_predict_writes_labels_of_another_run(
    suffix: str, cfg: RunConfig, folder: Path, texts: tuple[str, ...], tmp_path: Path
) -> None:
    data, to = tmp_path / "new.csv", tmp_path / f"out{suffix}"
    data.write_text("name,words\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(texts)))
    options = ["--data", str(data), "--text", "words", "--id", "name", "--to", str(to)]
    assert main(["predict", "--model", str(folder), *options]) == 0
    if suffix == ".jsonl":
        table = pa.Table.from_pylist([json.loads(line) for line in to.read_text().splitlines()])
    else:
        table = pq.read_table(to)
    assert table.column_names == ["id", "text", "label", "probs"]
    probs = np.array(table["probs"].to_pylist(), dtype=np.float32)
    assert np.array_equal(probs, stored(cfg)) and table["text"].to_pylist() == list(texts)
    assert table["label"].to_pylist() == [("singular", "plural")[i] for i in probs.argmax(1)]
    assert table["id"].to_pylist() == [str(i) for i in range(len(texts))]


def test_predictions_are_utf8_in_every_locale(folder: Path, tmp_path: Path) -> None:
    data, to = tmp_path / "new.jsonl", tmp_path / "out.jsonl"
    data.write_text('{"text": "die Schlüssel 鍵"}\n', encoding="utf-8")
    with ascii_locale():
        assert main(["predict", "--model", str(folder), "--data", str(data), "--to", str(to)]) == 0
    assert json.loads(to.read_text(encoding="utf-8"))["text"] == "die Schlüssel 鍵"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_of_predictions_is_there_whole_or_not_at_all(
    suffix: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half would be in the way of the next try."""
    (tmp_path / "new.jsonl").write_text('{"text": "the keys"}\n')
    given = {"model": folder, "data": tmp_path / "new.jsonl", "to": tmp_path / f"out{suffix}"}
    args = ["predict", *(f"--{k}={v}" for k, v in given.items())]
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(RuntimeError, match="the disk is gone"):
            main(args)
    assert [p.name for p in tmp_path.iterdir()] == ["new.jsonl"]
    assert main(args) == 0


def fail(*_: Any) -> None:
    raise RuntimeError("the disk is gone")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": None}, "predict needs --to"),
        ({"to": "x.csv"}, "expected a name that ends in .parquet or .jsonl"),
        ({"to": "new.jsonl"}, "which exists; name a new file"),
        ({"to": "none/x.jsonl"}, "its folder does not exist"),
        ({"data": "missing.csv"}, "missing.csv"),
        ({"text": "txt"}, "no column 'txt' (--text)"),
        ({"model": "."}, "has no w2s.json, head.safetensors, config.json"),
        ({"texts": "a"}, "predict: unexpected --texts a; expected --model"),
    ],
)
def test_bad_arguments_are_named_before_a_model_is_loaded(
    changes: dict[str, str | None],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.jsonl").write_text('{"text": "the keys"}\n{"text": "the key"}\n')
    good = {"model": str(folder), "data": "new.jsonl", "to": "out.jsonl"}
    given = [f"--{k}={v}" for k, v in {**good, **changes}.items() if v and k != "texts"]
    given += ["--texts", "a"] if "texts" in changes else []
    assert main(["predict", *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("new.jsonl", '{"text": "the keys"}\n{"text": null}\n'),
        ("new.csv", 'text,more\nthe keys,1\n"",2\n'),
        ("new.csv", 'text,more\nthe keys,1\n" \t",2\n'),
        ("new.parquet", [1.5, float("nan")]),
    ],
    ids=["null", "nothing", "blanks", "NaN"],
)
def test_an_empty_cell_is_an_error(
    name: str,
    content: str | list[float],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every format has its own; none has a class."""
    data = tmp_path / name
    if isinstance(content, str):
        data.write_text(content)
    else:
        pq.write_table(pa.table({"text": content}), data)
    options = ["--data", str(data), "--to", str(tmp_path / "out.jsonl")]
    assert main(["predict", "--model", str(folder), *options]) == 2
    message = "1 of 2 rows have no value in column 'text' (--text), the first is row 2; fill or"
    assert message in capsys.readouterr().err


LATIN = "name;words\n1;die Schlüssel\n2;der Schrank\n".encode("cp1252")


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ((), "it looks like latin-1, so set --encoding=latin-1"),
        (("--encoding=latin-1",), "it looks like --delimiter=';', --quoted=true, so set those"),
        (("--encoding=latn1", "--delimiter=;"), "--encoding='latn1' is unknown; expected utf-8"),
        (("--delimiter=;;",), "--delimiter=';;': expected one character"),
        (("--quoted=maybe",), "--quoted is 'maybe'; expected true or false"),
        (("--header=1",), "--header is '1'; expected true or false"),
        (("--encoding=latin-1", "--delimiter=;", "--id=nmae"), "no column 'nmae' (--id); did"),
    ],
)
def test_the_advice_about_a_file_names_options_of_predict(
    options: tuple[str, ...],
    advice: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "new.csv").write_bytes(LATIN)
    given = ["--data", f"{tmp_path}/new.csv", "--to", f"{tmp_path}/out.jsonl", "--text", "words"]
    assert main(["predict", "--model", str(folder), *given, *options]) == 2
    error = capsys.readouterr().err
    assert advice in error and "task." not in error


def test_files_of_other_programs_are_predicted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_bytes(LATIN)
    given = ["--data", f"{tmp_path}/new.csv", "--to", f"{tmp_path}/out.jsonl", "--text", "words"]
    options = ["--encoding", "cp1252", "--delimiter", ";", "--quoted", "true", "--id", "name"]
    assert main(["predict", "--model", str(folder), *given, *options]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == [
        ("1", "die Schlüssel"), ("2", "der Schrank"),
    ]  # fmt: skip


def test_a_column_by_its_position_is_of_a_file_without_header(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in tasks; the first text became the header, and had no prediction."""
    data, to = tmp_path / "new.tsv", tmp_path / "out.jsonl"
    data.write_text("1\tthe keys\n2\tthe key\n")
    given = ["--model", str(folder), "--data", str(data), "--to", str(to), "--text=1"]
    assert main(["predict", *given, r"--delimiter=\t"]) == 0
    assert len(to.read_text().splitlines()) == 2
    to.unlink()
    data.write_text("id\ttext\n1\tthe keys\n")
    assert main(["predict", *given]) == 2
    assert "looks like a header; set --header=true, or false" in capsys.readouterr().err
    assert main(["predict", *given, "--header=true"]) == 0
    assert len(to.read_text().splitlines()) == 1


@pytest.mark.parametrize("about", ["{", '{"pooling": "last"}', "[]"])
def test_a_damaged_folder_is_an_error(about: str, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "w2s.json").write_text(about)
    with pytest.raises(W2SError, match="export the model again"):
        load_exported(tmp_path)


def test_an_export_that_fails_leaves_nothing_in_the_way(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("w2s_fast.pipeline.export.model_card", fail)
        with pytest.raises(RuntimeError, match="the disk is gone"):
            export(cfg, STUDENT, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with ascii_locale():
        export(cfg, STUDENT, tmp_path)
    assert "–" in (tmp_path / "README.md").read_text(encoding="utf-8")


class TestModelCard:
    def test_it_has_task_method_scores_and_provenance(self, cfg: RunConfig, folder: Path) -> None:
        card = (folder / "README.md").read_text()
        _, head, body = card.split("---\n", 2)
        assert yaml.safe_load(head)["pipeline_tag"] == "text-classification"
        results = json.loads((Path(cfg.output_dir) / "results.json").read_text())
        (run,) = (r for r in results["runs"] if r["name"] == STUDENT.split("/", 2)[2])
        scores = " | ".join(f"{run[m]:.3f}" for m in ("weak", "student", "ceiling"))
        assert f"| seed 0 | {scores} |" in body
        for text in (
            "| task | agreement |", "| method and loss | confident:low=0.4,high=0.6+xent |",
            "| rows | 40 weak, 48 transfer, 40 test |", "w2s_fast ", "PGR",
        ):  # fmt: skip
            assert text in body

    def test_it_names_no_folder_of_this_machine(self, cfg: RunConfig, folder: Path) -> None:
        assert str(Path(cfg.output_dir).parent) not in (folder / "README.md").read_text()

    def test_a_run_without_results_has_no_scores(self, cfg: RunConfig, tmp_path: Path) -> None:
        from dataclasses import replace

        other = replace(cfg, output_dir=str(tmp_path / "none"), cache_dir=str(cfg.store_dir))
        export(other, STUDENT, tmp_path / "model")
        assert "The run has no results yet" in (tmp_path / "model" / "README.md").read_text()

    def test_a_ceiling_has_its_accuracy(self, cfg: RunConfig, tmp_path: Path) -> None:
        export(cfg, "ceiling/0", tmp_path / "model")
        results: Any = json.loads((Path(cfg.output_dir) / "results.json").read_text())
        card = (tmp_path / "model" / "README.md").read_text()
        assert f"Accuracy {results['runs'][0]['ceiling']:.3f} on 40 test items." in card
