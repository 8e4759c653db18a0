"""Named sets read from local copies and through the hub's library, and what goes wrong."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.task_data import (
    HUB_TASKS,
    SMALL,
    all_columns,
    check_schema,
    fails,
    many_like,
    write_rows,
)

from w2s_fast.tasks import TaskConfig
from w2s_fast.tasks._hub import class_index


@pytest.mark.parametrize("name", HUB_TASKS)
@pytest.mark.parametrize("layout", ["{}.parquet", "data/{}-00000-of-00001.parquet", "{}.jsonl"])
def test_local_copy(tmp_path: Path, name: str, layout: str) -> None:
    task = HUB_TASKS[name]
    for split, n in ((task.train_split, 120), (task.test_split, 60)):
        file = tmp_path / layout.format(split)
        file.parent.mkdir(exist_ok=True)
        write_rows(file, many_like(task, n, split[0]))
    cfg = TaskConfig(name=name, path=str(tmp_path), **SMALL)
    data = task.load(cfg, 0)
    check_schema(data, cfg)
    assert data.class_names == task.class_names
    assert all_columns(data) == all_columns(task.load(cfg, 0))


def test_a_copy_of_several_configurations(tmp_path: Path) -> None:
    """The folder of the configuration is read, not its neighbours, as the hub lays them out."""
    for config, name in (("multirc", "multirc"), ("wic", "wic")):
        for split, n in (("train", 60), ("validation", 30)):
            folder = tmp_path / config / split
            folder.mkdir(parents=True)
            write_rows(folder / "0000.parquet", many_like(HUB_TASKS[name], n, split[0]))
    data = HUB_TASKS["wic"].load(TaskConfig(name="wic", path=str(tmp_path), **SMALL), 0)
    assert all(text.startswith("Sentence 1:") for text in data.weak.texts + data.test.texts)


def test_a_set_with_one_split_is_cut_in_three(tmp_path: Path) -> None:
    legal = HUB_TASKS["wts_legal"]
    write_rows(tmp_path / "train.jsonl", many_like(legal, 8, "t"))
    write_rows(tmp_path / "test.jsonl", many_like(legal, 45, "e"))
    cfg = TaskConfig(name="wts_legal", path=str(tmp_path), **SMALL)
    data = legal.load(cfg, 0)
    check_schema(data, cfg)
    texts = data.weak.texts + data.transfer.texts + data.test.texts
    assert all(text.startswith("Question: e") for text in texts)
    other = replace(cfg, n_test=30)
    fails(lambda: legal.load(other, 0), "wts_legal (test) has 45 rows", "task.n_test = 50")


def test_csv_copy_and_shards(tmp_path: Path) -> None:
    boolq = HUB_TASKS["boolq"]
    rows = [{"passage": f"p {i}", "question": "q", "answer": i % 2 == 0} for i in range(90)]
    for shard in range(3):
        write_rows(tmp_path / f"train-0000{shard}-of-00003.csv", rows[shard * 20 : shard * 20 + 20])
    write_rows(tmp_path / "validation.csv", rows[60:])
    write_rows(tmp_path / "training_notes.csv", [{"a": "ignored"}])
    cfg = TaskConfig(name="boolq", path=str(tmp_path), n_weak=20, n_transfer=38, n_test=20)
    check_schema(boolq.load(cfg, 0), cfg)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("train.parquet", "train.jsonl"),
        ("train.parquet", "train.csv"),
        ("train.parquet", "train.old.parquet"),
        ("train.jsonl", "data/train.ndjson"),
        ("train.parquet", "train-00001-of-00002.parquet"),
        ("train.parquet", "train/0000.parquet"),
        ("data/train-00000-of-00002.parquet", "train-00000-of-00003.parquet"),
        ("train/0000.parquet", "train/0001.csv"),
    ],
)
def test_a_split_in_two_kinds_of_files_is_refused(tmp_path: Path, one: str, two: str) -> None:
    """A converted copy beside the original would count every row twice."""
    sst2 = HUB_TASKS["sst2"]
    for name in (one, two, "validation.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_rows(tmp_path / name, many_like(sst2, 60, name[0]))
    cfg = TaskConfig(name="sst2", path=str(tmp_path), **SMALL)
    fails(lambda: sst2.load(cfg, 0), f"task.path={tmp_path} has", one, two, "train files")


def test_files_of_one_name_in_several_folders_are_one_split(tmp_path: Path) -> None:
    """As in a checkout of Anthropic's repository."""
    task = HUB_TASKS["anthropic_hh"]
    for folder in ("harmless-base", "helpful-base"):
        (tmp_path / folder).mkdir()
        for split in ("train", "test"):
            write_rows(tmp_path / folder / f"{split}.jsonl", many_like(task, 40, folder[:3]))
    cfg = TaskConfig(name="anthropic_hh", path=str(tmp_path), balance=False, n_weak=8, n_test=8)
    table = task._local_table(cfg, tmp_path, "train")
    assert table.num_rows == 80


def test_shards_whose_types_differ(tmp_path: Path) -> None:
    """A column that is empty in one shard has no type there; text beside numbers is an error."""
    sciq = HUB_TASKS["sciq_with_support"]
    shards = [tmp_path / f"train-0000{i}-of-00002.jsonl" for i in range(2)]
    rows = many_like(sciq, 60, "a")
    write_rows(tmp_path / "test.jsonl", many_like(sciq, 60, "e"))
    write_rows(shards[1], many_like(sciq, 60, "b"))
    write_rows(shards[0], [{**row, "support": None} for row in rows])
    cfg = TaskConfig(name="sciq_with_support", path=str(tmp_path), **SMALL)
    table = sciq._local_table(cfg, tmp_path, "train")
    assert table.num_rows == 120 and table["support"].null_count == 60
    write_rows(shards[0], [{**row, "support": 3} for row in rows])
    fails(
        lambda: sciq.load(cfg, 0),
        "train-00001-of-00002.jsonl: column 'support' has string, not int64 as in train-00000-of-",
    )  # fmt: skip


def test_a_large_split_is_sampled_not_taken_from_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w2s_fast.tasks._hub._MAX_ROWS", 100)
    amazon = HUB_TASKS["amazon_polarity"]
    write_rows(tmp_path / "train.parquet", many_like(amazon, 2000, "t"))
    write_rows(tmp_path / "test.parquet", many_like(amazon, 60, "e"))
    data = amazon.load(TaskConfig(name="amazon_polarity", path=str(tmp_path), **SMALL), 0)
    assert max(int(text.split()[0][1:]) for text in data.transfer.texts) > 500


def test_passages_of_the_test_split_are_not_trained_on(tmp_path: Path) -> None:
    def rows(first: int, question: str) -> list[dict[str, object]]:
        numbers = range(first, first + 40)
        return [{"passage": f"p{i}.", "question": question, "answer": i % 2 > 0} for i in numbers]

    write_rows(tmp_path / "train.jsonl", rows(0, "one"))
    write_rows(tmp_path / "validation.jsonl", rows(20, "two"))
    data = HUB_TASKS["boolq"].load(TaskConfig(name="boolq", path=str(tmp_path), **SMALL), 0)
    texts = data.weak.texts + data.transfer.texts
    assert {text.split(".")[0] for text in texts} == {f"Passage: p{i}" for i in range(20)}


def test_local_copy_errors(tmp_path: Path) -> None:
    sciq = HUB_TASKS["sciq"]
    load = lambda: sciq.load(TaskConfig(name="sciq", path=str(tmp_path), **SMALL), 0)  # noqa: E731
    fails(load, "no train file", "train.parquet and test.parquet", "correct_answer")
    absent = TaskConfig(name="sciq", path=str(tmp_path / "no"), **SMALL)
    fails(lambda: sciq.load(absent, 0), "no such directory", "task.path=DIRECTORY")
    write_rows(tmp_path / "train.jsonl", [{"question": "q"}])
    fails(load, "no column 'correct_answer'", "the file has question")
    rows = many_like(sciq, 40, "x")
    rows[3]["distractor2"] = None
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", many_like(sciq, 20, "y"))
    fails(load, "sciq: no value in column 'distractor2' of the row", "x3")
    fails(lambda: class_index(-1, "label", 2), "label is -1", "labelled split")
    bad = [{"label": "2", "title": "t", "content": "c"}]
    fails(lambda: HUB_TASKS["amazon_polarity"].examples(bad, 0), "label is '2'", "['2', 't', 'c']")


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("sst2", {}),
        ("paws", {"name": "labeled_final"}),
        ("piqa", {"revision": "refs/convert/parquet"}),
        ("wic", {"revision": "refs/convert/parquet", "data_dir": "wic"}),
    ],
)
def test_where_on_the_hub_a_set_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, address: dict[str, str]
) -> None:
    import datasets

    requests: list[dict[str, str]] = []

    def load_dataset(repo: str, split: str, **options: str) -> datasets.Dataset:
        requests.append(options)
        return datasets.Dataset.from_list(many_like(HUB_TASKS[name], 60, split))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    cfg = TaskConfig(name=name, **SMALL)
    check_schema(HUB_TASKS[name].load(cfg, 0), cfg)
    assert requests == [address] * 2


def test_a_folder_of_a_converted_branch_is_one_configuration(tmp_path: Path) -> None:
    """What ``data_dir`` means to the library, on a folder that is laid out like such a branch."""
    import datasets

    for config in ("multirc", "wic"):
        folder = tmp_path / "repo" / config / "train"
        folder.mkdir(parents=True)
        write_rows(folder / "0000.parquet", [{"config": config}] * 3)
    dataset = datasets.load_dataset(
        str(tmp_path / "repo"), data_dir="wic", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert dataset["config"][:] == ["wic"] * 3


@pytest.mark.parametrize("name", HUB_TASKS)
def test_offline_says_where_to_put_what(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    datasets = types.ModuleType("datasets")
    calls: list[dict[str, object]] = []

    def load_dataset(repo: str, **options: object) -> None:
        calls.append(options)
        raise ConnectionError("Couldn't reach\nthe hub")

    datasets.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    task = HUB_TASKS[name]
    fails(
        lambda: task.load(TaskConfig(name=name), 0),
        "could not be loaded", "Couldn't reach the hub", f"{task.test_split}.parquet",
        f"https://huggingface.co/datasets/{task.repo}", "task.path=DIRECTORY", *task.columns,
        f"{task.train_split}.parquet", task.config or task.repo,
    )  # fmt: skip
    assert all("trust_remote_code" not in options for options in calls)
    monkeypatch.setitem(sys.modules, "datasets", None)
    load = lambda: task.load(TaskConfig(name=name), 0)  # noqa: E731
    fails(load, "'datasets' is not installed", "w2s-fast[hf]")


def test_hub_rows_through_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    task = HUB_TASKS["cosmos_qa"]
    requests: list[tuple[str, str | None, str]] = []

    def load_dataset(repo: str, revision: str | None, split: str) -> datasets.Dataset:
        requests.append((repo, revision, split))
        return datasets.Dataset.from_list([{**row, "id": 1} for row in many_like(task, 150, split)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("w2s_fast.tasks._hub._MAX_ROWS", 100)
    cfg = TaskConfig(name="cosmos_qa", **SMALL)
    data = task.load(cfg, 0)
    check_schema(data, cfg)
    assert any(int(text.split()[1].removeprefix("train")) >= 100 for text in data.transfer.texts)
    assert requests == [
        ("allenai/cosmos_qa", "refs/convert/parquet", split) for split in ("train", "validation")
    ]
