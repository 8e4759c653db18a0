"""Tasks: schema, determinism, disjoint splits, groups, formatters, and every error."""

from __future__ import annotations

import itertools
import json
import sys
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from w2s_fast.errors import W2SError
from w2s_fast.tasks import TASKS, PretrainConfig, TaskConfig, TaskData, get_task
from w2s_fast.tasks._hub import HubTask, class_index
from w2s_fast.tasks._split import make_examples, split_pool

HUB_TASKS = {name: task for name, task in TASKS.items() if isinstance(task, HubTask)}
SMALL = {"n_weak": 8, "n_transfer": 12, "n_test": 10}


def _rows(n: int, start: int = 0) -> list[dict[str, object]]:
    """n rows with alternating labels; three rows in a row share a document."""
    numbers = range(start, start + n)
    return [{"text": f"item {i}", "label": i % 2, "doc": f"d{i // 3}"} for i in numbers]


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write rows in the format of the suffix."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [list(rows[0])] + [[str(value) for value in row.values()] for row in rows]
        path.write_text("\n".join(mark.join(line) for line in lines) + "\n")
    return path


def _local(path: Path, **options: object) -> TaskConfig:
    return TaskConfig(**{"name": "local", "path": str(path), **SMALL, **options})  # type: ignore[arg-type]


def _columns(data: TaskData) -> list[object]:
    parts = (data.weak, data.transfer, data.test)
    return [(p.ids, p.texts, p.pairs, p.labels.tolist(), p.groups) for p in parts]


def _check_schema(data: TaskData, cfg: TaskConfig) -> None:
    parts = (data.weak, data.transfer, data.test)
    assert [len(part) for part in parts] == [cfg.n_weak, cfg.n_transfer, cfg.n_test]
    for part in parts:
        assert len(part.texts) == len(part.groups) == len(part.labels) == len(part)
        assert part.labels.dtype == np.int64
        assert part.pairs is None or len(part.pairs) == len(part)
        counts = Counter(part.labels.tolist())
        assert set(counts) == set(range(len(data.class_names)))
        if cfg.balance:
            assert max(counts.values()) - min(counts.values()) <= 1
    ids = [i for part in parts for i in part.ids]
    assert len(set(ids)) == len(ids)
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert not set(parts[one].groups) & set(parts[two].groups)
        assert not set(parts[one].texts) & set(parts[two].texts)


def _fails(call: object, *words: str) -> None:
    """The call raises one line that contains all words."""
    with pytest.raises(W2SError) as caught:
        call()  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# --- local files -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_local_formats_agree(tmp_path: Path, suffix: str) -> None:
    reference = _local(_write(tmp_path / "a.parquet", _rows(60)))
    cfg = _local(_write(tmp_path / f"b{suffix}", _rows(60)))
    data = get_task("local").load(cfg, seed=3)
    _check_schema(data, cfg)
    assert data.class_names == ("0", "1")
    assert _columns(data) == _columns(get_task("local").load(reference, seed=3))


def test_local_seed_decides(tmp_path: Path) -> None:
    cfg = _local(_write(tmp_path / "a.jsonl", _rows(60)))
    first, again, other = (get_task("local").load(cfg, seed) for seed in (0, 0, 1))
    assert _columns(first) == _columns(again)
    assert set(first.test.ids) != set(other.test.ids)


def test_test_rows_do_not_depend_on_the_other_sizes(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", _rows(90))
    one, two = (get_task("local").load(_local(path, n_weak=n), 0) for n in (8, 20))
    assert one.test.ids == two.test.ids


def test_rows_are_shuffled_before_they_are_taken(tmp_path: Path) -> None:
    cfg = _local(_write(tmp_path / "a.jsonl", _rows(900)))
    data = get_task("local").load(cfg, 0)
    assert max(int(text.split()[1]) for text in data.weak.texts) > 300


def test_headerless_tsv_by_position_keeps_quotes(tmp_path: Path) -> None:
    lines = [f'he said " {i} , and left\t{i % 2}' for i in range(40)]
    path = tmp_path / "a.tsv"
    path.write_text("\n".join(lines))
    cfg = _local(path, text="0", label="1")
    data = get_task("local").load(cfg, 0)
    _check_schema(data, cfg)
    assert all(text.startswith('he said " ') for text in data.weak.texts)


def test_csv_quotes_newlines_and_words_like_null(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    body = "".join(f'"a ""{i}"",\nb",{("null", "NA")[i % 2]}\n' for i in range(40))
    path.write_text("text,label\n" + body)
    data = get_task("local").load(_local(path), 0)
    assert data.class_names == ("NA", "null")
    assert all(text.endswith('",\nb') for text in data.test.texts)


def test_csv_without_quoting(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text;label\n" + "".join(f'"a {i};{i % 2}\n' for i in range(40)))
    data = get_task("local").load(_local(path, quoted=False, delimiter=";"), 0)
    assert all(text.startswith('"a ') for text in data.test.texts)


def test_pairs_bools_and_declared_classes(tmp_path: Path) -> None:
    rows = [{"a": f"p {i}", "b": f"h {i}", "ok": bool(i % 2)} for i in range(40)]
    path = _write(tmp_path / "a.jsonl", rows)
    cfg = _local(path, text="a", text_pair="b", label="ok", classes=("True", "False"))
    data = get_task("local").load(cfg, 0)
    _check_schema(data, cfg)
    assert data.weak.pairs is not None
    for text, second, label in zip(data.weak.texts, data.weak.pairs, data.weak.labels, strict=True):
        number = int(text.split()[1])
        assert second == f"h {number}"
        assert label == 1 - number % 2


def test_many_classes_are_sorted_as_numbers(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": float(i % 11)} for i in range(200)]
    cfg = _local(_write(tmp_path / "a.parquet", rows), n_weak=22, n_transfer=33, n_test=40)
    data = get_task("local").load(cfg, 0)
    assert data.class_names == tuple(map(str, range(11)))
    _check_schema(data, cfg)


def test_groups_are_never_split(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", _rows(120))
    cfg = _local(path, group="doc")
    data = get_task("local").load(cfg, 0)
    _check_schema(data, cfg)
    parts = (data.weak, data.transfer, data.test)
    owners = [{int(t.split()[1]) // 3 for t in part.texts} for part in parts]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    assert any(len(docs) < len(part) for docs, part in zip(owners, parts, strict=True))


def test_equal_texts_are_one_group_whatever_their_case(tmp_path: Path) -> None:
    rows = [{"text": ("Same  text" if i % 3 else "same text"), "label": i % 2} for i in range(30)]
    data = get_task("local").load(_local(_write(tmp_path / "a.jsonl", rows + _rows(60))), 0)
    homes = [
        any(text.casefold().startswith("same") for text in part.texts)
        for part in (data.weak, data.transfer, data.test)
    ]
    assert sum(homes) <= 1


def test_groups_join_through_equal_texts() -> None:
    examples = make_examples(["a", "b", "B ", "c"], [0, 0, 1, 1], groups=["x", "x", "y", None])
    assert len(set(examples.groups[:3])) == 1
    assert examples.groups[3] != examples.groups[0]


def test_ids_do_not_depend_on_the_order_of_rows() -> None:
    one = make_examples(["a", "b", "a"], [0, 1, 0])
    two = make_examples(["b", "a", "a"], [1, 0, 0])
    assert set(one.ids) == set(two.ids)
    assert len(set(one.ids)) == 3


def test_separate_test_file_drops_related_training_rows(tmp_path: Path) -> None:
    train = _write(tmp_path / "train.jsonl", _rows(60))
    test = _write(tmp_path / "test.jsonl", _rows(30, start=40))
    cfg = _local(train, test_path=str(test), group="doc")
    data = get_task("local").load(cfg, 0)
    _check_schema(data, cfg)
    assert all(int(text.split()[1]) >= 40 for text in data.test.texts)
    # document 13 holds the rows 39 to 41, so row 39 is related to the test file
    used = {int(t.split()[1]) for part in (data.weak, data.transfer) for t in part.texts}
    assert max(used) < 39


def test_files_are_related_through_groups_and_through_texts(tmp_path: Path) -> None:
    """Document 13 is cut by the files: rows 39 and 40 are in one, row 41 is in the other."""
    train = _write(tmp_path / "train.jsonl", [*_rows(41), *_rows(2, start=60)])
    test = _write(tmp_path / "test.jsonl", _rows(30, start=41))
    cfg = _local(train, test_path=str(test), group="doc", n_weak=14, n_transfer=24)
    data = get_task("local").load(cfg, 0)
    _check_schema(data, cfg)
    used = {int(t.split()[1]) for part in (data.weak, data.transfer) for t in part.texts}
    assert used < set(range(39))  # all of 0 ... 38 but one
    plain = replace(cfg, group=None, n_transfer=26)
    data = get_task("local").load(plain, 0)
    used = {int(t.split()[1]) for part in (data.weak, data.transfer) for t in part.texts}
    assert used < set(range(41))


def test_rows_of_one_group_are_not_drawn_in_a_run() -> None:
    groups = [f"g{i // 20}" for i in range(400)]
    pool = make_examples([f"t {i}" for i in range(400)], [i % 2 for i in range(400)], None, groups)
    cfg = TaskConfig(name="local", n_weak=100, n_transfer=100, n_test=100)
    names = split_pool(pool, None, ("a", "b"), cfg, 0, "data").transfer.groups
    assert sum(one == two for one, two in itertools.pairwise(names)) < 40  # 19 expected, 95 in runs


def test_large_groups_wait_for_a_split_with_room() -> None:
    sizes = [40, *[2] * 30]
    groups = [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]
    labels = [i % 2 for i in range(len(groups))]
    pool = make_examples([f"t {i}" for i in range(len(groups))], labels, None, groups)
    cfg = TaskConfig(name="local", n_weak=20, n_transfer=60, n_test=20)
    for seed in range(20):  # 100 rows of 100: cutting the large group once would be one row short
        data = split_pool(pool, None, ("a", "b"), cfg, seed, "data")
        assert pool.groups[0] in data.transfer.groups


def test_the_smallest_group_is_cut_where_none_fits() -> None:
    sizes = [60, 8, 10, 12]
    groups = [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]
    labels = [i % 2 for i in range(len(groups))]
    pool = make_examples([f"t {i}" for i in range(len(groups))], labels, None, groups)
    cfg = TaskConfig(name="local", n_weak=4, n_transfer=6, n_test=4)
    for seed in range(20):
        data = split_pool(pool, None, ("a", "b"), cfg, seed, "data")
        assert set(data.test.groups) == {pool.groups[60]}
        assert set(data.weak.groups) == {pool.groups[68]}


def test_unbalanced_draw_keeps_the_share(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": int(i % 10 == 0)} for i in range(3000)]
    path = _write(tmp_path / "a.jsonl", rows)
    cfg = _local(path, balance=False, n_weak=500, n_transfer=500, n_test=500)
    data = get_task("local").load(cfg, 0)
    assert 0.06 < data.transfer.labels.mean() < 0.14


# --- bad input -------------------------------------------------------------------------------


def test_missing_path_and_files(tmp_path: Path) -> None:
    load = get_task("local").load
    _fails(lambda: load(TaskConfig(name="local"), 0), "task.path is not set", "task.path=FILE")
    _write(tmp_path / "train.csv", _rows(4))
    _fails(lambda: load(_local(tmp_path / "trian.csv"), 0), "no such file", "'train.csv'")
    _fails(lambda: load(_local(tmp_path), 0), "is a directory")
    (tmp_path / "a.xls").write_text("x")
    _fails(lambda: load(_local(tmp_path / "a.xls"), 0), "unknown format '.xls'", ".parquet")


@pytest.mark.parametrize("content", ["", "text,label\n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    _fails(lambda: get_task("local").load(_local(path), 0), "a.csv", "one example a row")


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", _rows(40))
    load = get_task("local").load
    _fails(
        lambda: load(_local(path, label="labels"), 0),
        "no column 'labels' (task.label)", "did you mean 'label'?", "'text', 'label', 'doc'",
    )  # fmt: skip
    bare = tmp_path / "b.tsv"
    bare.write_text("a long first row\t0\nanother\t1\n")
    _fails(lambda: load(_local(bare), 0), "no column 'text'", "position (0, 1, ...)")
    _fails(lambda: load(_local(bare, text="0", label="7"), 0), "no column '7' (task.label)")


def test_duplicate_column_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,text,label\na,b,0\nc,d,1\n")
    _fails(lambda: get_task("local").load(_local(path), 0), "2 columns are named 'text'")


def test_label_outside_the_classes(tmp_path: Path) -> None:
    rows = _rows(40)
    rows[6]["label"] = 2
    path = _write(tmp_path / "a.csv", rows)
    load = get_task("local").load
    _fails(
        lambda: load(_local(path, classes=("0", "1")), 0),
        "label '2' in row 7", "['0', '1']", "task.classes",
    )  # fmt: skip
    train = _write(tmp_path / "train.csv", _rows(40))
    _fails(lambda: load(_local(train, test_path=str(path)), 0), "a.csv: label '2'", "train.csv")


def test_one_class_only(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", [{"text": f"t{i}", "label": "yes"} for i in range(40)])
    load = get_task("local").load
    _fails(lambda: load(_local(path), 0), "all 40 rows have the label 'yes'", "two classes")
    _fails(lambda: load(_local(path, classes=("no", "yes")), 0), "all 40 rows")


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
    _fails(
        lambda: get_task("local").load(_local(path), 0),
        f"1 of 40 rows have no value in column '{name}'", "the first is row 5", "remove",
    )  # fmt: skip


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    load = get_task("local").load
    rows = [{"text": f"t {i}", "label": i / 7} for i in range(40)]
    _fails(lambda: load(_local(_write(tmp_path / "a.parquet", rows)), 0), "is no class")
    _fails(lambda: load(_local(_write(tmp_path / "a.csv", rows)), 0), "40 different values")
    lists = [{"text": f"t {i}", "label": [i]} for i in range(40)]
    _fails(lambda: load(_local(_write(tmp_path / "b.parquet", lists)), 0), "is a list")


def test_too_few_rows(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", _rows(20))
    load = get_task("local").load
    _fails(lambda: load(_local(path), 0), "has 20 rows", "= 30", "lower")
    big = _write(tmp_path / "b.csv", _rows(100, start=50))
    _fails(
        lambda: load(_local(big, test_path=str(path), n_test=30), 0),
        "a.csv has 20 rows",
        "task.n_test = 30",
    )
    skewed = [{"text": f"t {i}", "label": int(i > 90)} for i in range(100)]
    path = _write(tmp_path / "c.csv", skewed)
    _fails(lambda: load(_local(path), 0), "of class '1' short", "task.balance=false")
    one_document = [{**row, "doc": "same"} for row in _rows(60)]
    path = _write(tmp_path / "d.csv", one_document)
    _fails(lambda: load(_local(path, group="doc", balance=False), 0), "groups are kept whole")


def test_draw_of_one_class_only() -> None:
    pool = make_examples([f"t {i}" for i in range(1000)], [int(i == 0) for i in range(1000)])
    cfg = TaskConfig(name="local", balance=False, **SMALL)
    _fails(lambda: split_pool(pool, None, ("a", "b"), cfg, 0, "data"), "of class 'a'")


def test_damaged_files(tmp_path: Path) -> None:
    load = get_task("local").load
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,0\nb,1,9\n")
    _fails(lambda: load(_local(path), 0), "could not be read as .csv", "Row #3", "repair")
    path.write_bytes(b"text,label\ncaf\xe9,0\nb,1\n")
    _fails(lambda: load(_local(path), 0), "could not be read as .csv", "UTF-8")
    for name in ("a.jsonl", "a.parquet"):
        (tmp_path / name).write_text('{"text": ')
        _fails(lambda name=name: load(_local(tmp_path / name), 0), "could not be read as")
    _fails(lambda: load(_local(path, delimiter="||"), 0), "task.delimiter='||'")


def test_config_values() -> None:
    _fails(lambda: TaskConfig(n_weak=0), "task.n_weak=0")
    _fails(lambda: TaskConfig(classes=("a",)), "two different class names")
    _fails(lambda: TaskConfig(classes=("a", "a")), "two different class names")
    _fails(lambda: TaskConfig(attractor_frac=1.5), "task.attractor_frac=1.5")
    _fails(lambda: PretrainConfig(hidden=30, heads=4), "pretrain.hidden=30")
    _fails(lambda: PretrainConfig(steps=0), "pretrain.steps=0")
    _fails(lambda: PretrainConfig(length=500), "pretrain.length=500")
    _fails(lambda: PretrainConfig(cue_frac=-0.1), "pretrain.cue_frac=-0.1")


# --- names -----------------------------------------------------------------------------------


def test_get_task_names(monkeypatch: pytest.MonkeyPatch) -> None:
    _fails(lambda: get_task("agrement"), "did you mean 'agreement'?", "anthropic_hh")
    module = types.ModuleType("own_tasks")
    module.Mine = type(TASKS["local"])  # type: ignore[attr-defined]
    module.ready = TASKS["local"]  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_tasks", module)
    assert isinstance(get_task("own_tasks:Mine"), type(TASKS["local"]))
    assert get_task("own_tasks:ready") is TASKS["local"]
    _fails(lambda: get_task("own_tasks:number"), "no load(cfg, seed)")
    _fails(lambda: get_task("own_tasks:absent"), "could not be imported")
    _fails(lambda: get_task("absent_module:x"), "could not be imported")


# --- hub sets --------------------------------------------------------------------------------

EXPECTED_TEXTS = {
    "sciq": "Q: What is frozen water called? A: ",
    "boolq": "Passage: Otters hunt in water and sleep on land. They eat fish, crabs and frogs.\n"
    "Question: do otters eat frogs",
    "cosmos_qa": "Context: My sister baked for hours. When the guests had gone, not a crumb was "
    "left.\nQuestion: Did the guests like it?\nAnswer: ",
    "amazon_polarity": "Could not stop reading The best story about lighthouses that I know.",
    "anthropic_hh": "\n\nHuman: Is it safe to mix cleaners?\n\nAssistant: ",
}


@pytest.mark.parametrize("name", HUB_TASKS)
def test_formatters_on_the_sample_rows(name: str) -> None:
    task = HUB_TASKS[name]
    assert len(task.samples) == 5
    assert all(set(row) == set(task.columns) for row in task.samples)
    one, two = task.examples(task.samples, 0), task.examples(task.samples, 0)
    assert one.texts == two.texts and one.texts[2].startswith(EXPECTED_TEXTS[name])
    reversed_rows = task.examples(task.samples[::-1], 0)
    assert reversed_rows.texts[::-1] == one.texts  # the coin is the row's own
    labels = [task.examples(task.samples, seed).labels for seed in range(40)]
    assert set(np.concatenate(labels)) == {0, 1}


@pytest.mark.parametrize(
    ("name", "answer_of"),
    [
        ("sciq", lambda row: row["correct_answer"]),
        ("cosmos_qa", lambda row: row[f"answer{row['label']}"]),
        ("anthropic_hh", lambda row: row["chosen"]),
    ],
)
def test_coin_shows_the_right_answer_iff_label_is_one(name: str, answer_of: object) -> None:
    task, seen = HUB_TASKS[name], set()
    for number in range(200):
        for row in task.samples:
            item = task.format(row, Random(number))
            right = answer_of(row)  # type: ignore[operator]
            assert item.text.endswith(right) == bool(item.label)
            seen.add((row[task.columns[0]], item.text))
    if name == "sciq":
        assert len(seen) == 5 * 4  # the right answer and each of the three distractors
    if name == "cosmos_qa":  # "none of the above" is never the answer that counts as right
        texts = [task.format(task.samples[3], Random(i)) for i in range(50)]
        assert {item.label for item in texts} == {0}


def test_labels_of_sets_without_a_coin() -> None:
    assert HUB_TASKS["boolq"].examples(HUB_TASKS["boolq"].samples, 0).labels.tolist() == [
        1, 0, 1, 0, 1
    ]  # fmt: skip
    amazon = HUB_TASKS["amazon_polarity"]
    assert amazon.examples(amazon.samples, 0).labels.tolist() == [1, 0, 1, 0, 1]


def test_questions_about_one_passage_are_related() -> None:
    for name in ("boolq", "cosmos_qa"):
        groups = HUB_TASKS[name].examples(HUB_TASKS[name].samples, 0).groups
        assert groups[0] == groups[1] != groups[2] == groups[3] != groups[4]


def _many(task: HubTask, n: int, mark: str) -> list[dict[str, object]]:
    """n rows like the samples, all of them different."""
    fixed = ("label", "answer") if task.name != "sciq" else ()
    rows = []
    for i in range(n):
        row = dict(task.samples[i % len(task.samples)])
        if task.name == "anthropic_hh":  # the opening is what makes dialogues different
            rows.append({k: v.replace("Human: ", f"Human: {mark}{i} ") for k, v in row.items()})
        else:
            rows.append({k: v if k in fixed else f"{v} {mark}{i}" for k, v in row.items()})
    return rows


@pytest.mark.parametrize("name", HUB_TASKS)
@pytest.mark.parametrize("layout", ["{}.parquet", "data/{}-00000-of-00001.parquet", "{}.jsonl"])
def test_local_copy(tmp_path: Path, name: str, layout: str) -> None:
    task = HUB_TASKS[name]
    for split, n in (("train", 120), (task.test_split, 60)):
        file = tmp_path / layout.format(split)
        file.parent.mkdir(exist_ok=True)
        _write(file, _many(task, n, split[0]))
    cfg = TaskConfig(name=name, path=str(tmp_path), **SMALL)
    data = task.load(cfg, 0)
    _check_schema(data, cfg)
    assert data.class_names == task.class_names
    assert _columns(data) == _columns(task.load(cfg, 0))


def test_csv_copy_and_shards(tmp_path: Path) -> None:
    boolq = HUB_TASKS["boolq"]
    rows = [{"passage": f"p {i}", "question": "q", "answer": i % 2 == 0} for i in range(90)]
    for shard in range(3):
        _write(tmp_path / f"train-0000{shard}-of-00003.csv", rows[shard * 20 : shard * 20 + 20])
    _write(tmp_path / "validation.csv", rows[60:])
    _write(tmp_path / "training_notes.csv", [{"a": "ignored"}])
    cfg = TaskConfig(name="boolq", path=str(tmp_path), n_weak=20, n_transfer=38, n_test=20)
    _check_schema(boolq.load(cfg, 0), cfg)


def test_a_large_split_is_sampled_not_taken_from_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w2s_fast.tasks._hub._MAX_ROWS", 100)
    amazon = HUB_TASKS["amazon_polarity"]
    _write(tmp_path / "train.parquet", _many(amazon, 2000, "t"))
    _write(tmp_path / "test.parquet", _many(amazon, 60, "e"))
    data = amazon.load(TaskConfig(name="amazon_polarity", path=str(tmp_path), **SMALL), 0)
    assert max(int(text.split()[-1][1:]) for text in data.transfer.texts) > 500


def test_passages_of_the_test_split_are_not_trained_on(tmp_path: Path) -> None:
    def rows(first: int, question: str) -> list[dict[str, object]]:
        numbers = range(first, first + 40)
        return [{"passage": f"p{i}.", "question": question, "answer": i % 2 > 0} for i in numbers]

    _write(tmp_path / "train.jsonl", rows(0, "one"))
    _write(tmp_path / "validation.jsonl", rows(20, "two"))
    data = HUB_TASKS["boolq"].load(TaskConfig(name="boolq", path=str(tmp_path), **SMALL), 0)
    texts = data.weak.texts + data.transfer.texts
    assert {text.split(".")[0] for text in texts} == {f"Passage: p{i}" for i in range(20)}


def test_local_copy_errors(tmp_path: Path) -> None:
    sciq = HUB_TASKS["sciq"]
    load = lambda: sciq.load(TaskConfig(name="sciq", path=str(tmp_path), **SMALL), 0)  # noqa: E731
    _fails(load, "no train file", "train.parquet and test.parquet", "correct_answer")
    absent = TaskConfig(name="sciq", path=str(tmp_path / "no"), **SMALL)
    _fails(lambda: sciq.load(absent, 0), "no such directory", "task.path=DIRECTORY")
    _write(tmp_path / "train.jsonl", [{"question": "q"}])
    _fails(load, "no column 'correct_answer'", "the file has question")
    rows = _many(sciq, 40, "x")
    rows[3]["distractor2"] = None
    _write(tmp_path / "train.jsonl", rows)
    _write(tmp_path / "test.jsonl", _many(sciq, 20, "y"))
    _fails(load, "sciq: no value in column 'distractor2' of the row", "x3")
    _fails(lambda: class_index(-1, "label", 2), "label is -1", "labelled split")
    bad = [{"label": "2", "title": "t", "content": "c"}]
    _fails(lambda: HUB_TASKS["amazon_polarity"].examples(bad, 0), "label is '2'", "['2', 't', 'c']")


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
    _fails(
        lambda: task.load(TaskConfig(name=name), 0),
        "could not be loaded", "Couldn't reach the hub", f"{task.test_split}.parquet",
        f"https://huggingface.co/datasets/{task.repo}", "task.path=DIRECTORY", task.columns[0],
    )  # fmt: skip
    assert all("trust_remote_code" not in options for options in calls)
    monkeypatch.setitem(sys.modules, "datasets", None)
    load = lambda: task.load(TaskConfig(name=name), 0)  # noqa: E731
    _fails(load, "'datasets' is not installed", "w2s-fast[hf]")


def test_hub_rows_through_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    task = HUB_TASKS["cosmos_qa"]
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(repo: str, revision: str | None, split: str) -> datasets.Dataset:
        asked.append((repo, revision, split))
        return datasets.Dataset.from_list([{**row, "id": 1} for row in _many(task, 150, split)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("w2s_fast.tasks._hub._MAX_ROWS", 100)
    cfg = TaskConfig(name="cosmos_qa", **SMALL)
    data = task.load(cfg, 0)
    _check_schema(data, cfg)
    tails = [f"train{number}" for number in range(100, 150)]
    assert any(text.endswith(tuple(tails)) for text in data.transfer.texts)
    assert asked == [
        ("allenai/cosmos_qa", "refs/convert/parquet", split) for split in ("train", "validation")
    ]
