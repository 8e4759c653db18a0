"""Bad input to local files, bad settings and unknown names: one line that says what to do."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers.task_data import fails, local_config, numbered_rows, write_rows

from w2s_fast.errors import W2SError
from w2s_fast.tasks import (
    TASKS,
    OodConfig,
    PretrainConfig,
    ShortcutConfig,
    TaskConfig,
    get_task,
)


def test_missing_path_and_files(tmp_path: Path) -> None:
    load = get_task("local").load
    fails(lambda: load(TaskConfig(name="local"), 0), "task.path is not set", "task.path=FILE")
    write_rows(tmp_path / "train.csv", numbered_rows(4))
    fails(lambda: load(local_config(tmp_path / "trian.csv"), 0), "no such file", "'train.csv'")
    fails(lambda: load(local_config(tmp_path), 0), "is a directory")
    (tmp_path / "a.xls").write_text("x")
    fails(lambda: load(local_config(tmp_path / "a.xls"), 0), "unknown format '.xls'", ".parquet")


@pytest.mark.parametrize("content", ["", "text,label\n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    fails(lambda: get_task("local").load(local_config(path), 0), "a.csv", "one example per row")


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", numbered_rows(40))
    load = get_task("local").load
    fails(
        lambda: load(local_config(path, label="labels"), 0),
        "no column 'labels' (task.label)", "did you mean 'label'?", "'text', 'label', 'doc'",
    )  # fmt: skip
    bare = tmp_path / "b.tsv"
    bare.write_text("a long first row\t0\nanother\t1\n")
    fails(lambda: load(local_config(bare), 0), "no column 'text'", "position (0, 1, ...)")
    fails(lambda: load(local_config(bare, text="0", label="7"), 0), "no column '7' (task.label)")


def test_duplicate_column_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,text,label\na,b,0\nc,d,1\n")
    fails(lambda: get_task("local").load(local_config(path), 0), "2 columns are named 'text'")


def test_label_outside_the_classes(tmp_path: Path) -> None:
    rows = numbered_rows(40)
    rows[6]["label"] = 2
    path = write_rows(tmp_path / "a.csv", rows)
    load = get_task("local").load
    fails(
        lambda: load(local_config(path, classes=("0", "1")), 0),
        "label '2' in row 7", "['0', '1']", "task.classes",
    )  # fmt: skip
    train = write_rows(tmp_path / "train.csv", numbered_rows(40))
    fails(
        lambda: load(local_config(train, test_path=str(path)), 0), "a.csv: label '2'", "train.csv"
    )


def test_one_class_only(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", [{"text": f"t{i}", "label": "yes"} for i in range(40)])
    load = get_task("local").load
    fails(lambda: load(local_config(path), 0), "all 40 rows have the label 'yes'", "two classes")
    fails(lambda: load(local_config(path, classes=("no", "yes")), 0), "all 40 rows")


@pytest.mark.parametrize("bad", [None, float("nan"), "", "  "])
@pytest.mark.parametrize("name", ["text", "label"])
def test_missing_values(tmp_path: Path, name: str, bad: object) -> None:
    rows = [{"text": f"t {i}", "label": str(i % 2)} for i in range(40)]
    values: list[object] = [row[name] for row in rows]
    values[4] = bad
    if isinstance(bad, float):
        values = [float(i) for i in range(40)]
        values[4] = bad
    columns = {"text": [row["text"] for row in rows], "label": [row["label"] for row in rows]}
    columns[name] = values  # type: ignore[assignment]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    fails(
        lambda: get_task("local").load(local_config(path), 0),
        f"1 of 40 rows have no value in column '{name}'", "the first is row 5", "remove",
    )  # fmt: skip


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    load = get_task("local").load
    rows = [{"text": f"t {i}", "label": i / 7} for i in range(40)]
    fails(lambda: load(local_config(write_rows(tmp_path / "a.parquet", rows)), 0), "is not a class")
    fails(
        lambda: load(local_config(write_rows(tmp_path / "a.csv", rows)), 0), "40 different values"
    )
    lists = [{"text": f"t {i}", "label": [i]} for i in range(40)]
    fails(lambda: load(local_config(write_rows(tmp_path / "b.parquet", lists)), 0), "is a list")


def test_too_few_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", numbered_rows(20))
    load = get_task("local").load
    fails(lambda: load(local_config(path), 0), "has 20 rows", "= 30", "lower")
    big = write_rows(tmp_path / "b.csv", numbered_rows(100, start=50))
    fails(
        lambda: load(local_config(big, test_path=str(path), n_test=30), 0),
        "a.csv has 20 rows",
        "task.n_test = 30",
    )
    skewed = [{"text": f"t {i}", "label": int(i > 21)} for i in range(36)]
    path = write_rows(tmp_path / "c.csv", skewed)
    fails(lambda: load(local_config(path), 0), "of class '1' short", "task.balance=false")
    skewed = [{"text": f"t {i}", "label": int(i > 90)} for i in range(100)]
    path = write_rows(tmp_path / "e.csv", skewed)  # unbalanced splits would have one class
    with pytest.raises(W2SError, match="of class '1' short; lower .* or add rows$"):
        load(local_config(path), 0)
    one_document = [{**row, "doc": "same"} for row in numbered_rows(60)]
    path = write_rows(tmp_path / "d.csv", one_document)
    fails(lambda: load(local_config(path, group="doc", balance=False), 0), "groups stay whole")


def test_damaged_files(tmp_path: Path) -> None:
    load = get_task("local").load
    for name in ("a.jsonl", "a.parquet"):
        (tmp_path / name).write_text('{"text": ')
        fails(lambda name=name: load(local_config(tmp_path / name), 0), "could not be read as")


def test_config_values() -> None:
    fails(lambda: TaskConfig(n_weak=0), "task.n_weak=0")
    fails(lambda: TaskConfig(classes=("a",)), "two different class names")
    fails(lambda: TaskConfig(classes=("a", "a")), "two different class names")
    fails(lambda: TaskConfig(attractor_frac=1.5), "task.attractor_frac=1.5")
    fails(lambda: TaskConfig(prompt="Is it?"), "task.prompt='Is it?'", "{text}")
    fails(lambda: TaskConfig(words=(" yes",)), "task.words=[' yes']", "one word per class")
    fails(lambda: TaskConfig(words=(" yes", " yes")), "all different")
    fails(lambda: TaskConfig(words=(" yes", "")), "all different")
    fails(lambda: PretrainConfig(hidden=30, heads=4), "pretrain.hidden=30")
    fails(lambda: PretrainConfig(steps=0), "pretrain.steps=0")
    fails(lambda: PretrainConfig(length=500), "pretrain.length=500")
    fails(lambda: PretrainConfig(cue_frac=-0.1), "pretrain.cue_frac=-0.1")
    fails(lambda: PretrainConfig(noise_frac=1.5), "pretrain.noise_frac=1.5")
    fails(lambda: PretrainConfig(noun_coverage=0.0), "noun_coverage=0.0: expected at least 0.1")
    fails(lambda: PretrainConfig(attractor_distance=6), "attractor_distance=6: expected 1 to 5")
    fails(lambda: TaskConfig(attractor_distance=0), "task.attractor_distance=0: expected 1 to 16")
    fails(lambda: ShortcutConfig(5), "task.shortcut.availability=5: expected 0 to 4 adverbs")
    fails(lambda: ShortcutConfig(1, -0.1), "task.shortcut.predictivity=-0.1: expected a share")
    fails(lambda: OodConfig(n=1), "task.ood.n=1: expected at least 2 items, or 0")
    fails(lambda: OodConfig(attractor_distance=0), "task.ood.attractor_distance=0: expected 1 to")
    for same in (
        {"ood": OodConfig(n=10, predictivity=0.2)},  # without a shortcut
        {"ood": OodConfig(n=10), "shortcut": ShortcutConfig(1, 0.5)},
        {"ood": OodConfig(n=10, attractor_distance=2), "attractor_distance": 2},
    ):
        fails(lambda same=same: TaskConfig(**same), "task.ood.n=10: these items would be like")


def test_get_task_names(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(lambda: get_task("agrement"), "did you mean 'agreement'?", "anthropic_hh")
    module = types.ModuleType("own_tasks")
    module.Mine = type(TASKS["local"])  # type: ignore[attr-defined]
    module.ready = TASKS["local"]  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_tasks", module)
    assert isinstance(get_task("own_tasks:Mine"), type(TASKS["local"]))
    assert get_task("own_tasks:ready") is TASKS["local"]
    fails(lambda: get_task("own_tasks:number"), "no load(cfg, seed)")
    fails(lambda: get_task("own_tasks:absent"), "could not be imported")
    fails(lambda: get_task("absent_module:x"), "could not be imported")
