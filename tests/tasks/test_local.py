"""Local files: formats agree, splits are disjoint and decided by the seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.task_data import all_columns, check_schema, local_config, numbered_rows, write_rows

from w2s_fast.errors import W2SError
from w2s_fast.tasks import get_task


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_local_formats_agree(tmp_path: Path, suffix: str) -> None:
    reference = local_config(write_rows(tmp_path / "a.parquet", numbered_rows(60)))
    cfg = local_config(write_rows(tmp_path / f"b{suffix}", numbered_rows(60)))
    data = get_task("local").load(cfg, seed=3)
    check_schema(data, cfg)
    assert data.class_names == ("0", "1")
    assert all_columns(data) == all_columns(get_task("local").load(reference, seed=3))


def test_local_seed_decides(tmp_path: Path) -> None:
    cfg = local_config(write_rows(tmp_path / "a.jsonl", numbered_rows(60)))
    first, again, other = (get_task("local").load(cfg, seed) for seed in (0, 0, 1))
    assert all_columns(first) == all_columns(again)
    assert set(first.test.ids) != set(other.test.ids)


def test_subgroups_follow_their_rows_through_the_splits(tmp_path: Path) -> None:
    rows = [{**row, "kind": f"k{i % 3}"} for i, row in enumerate(numbered_rows(60))]
    kind_of = {str(row["text"]): row["kind"] for row in rows}
    path = write_rows(tmp_path / "a.csv", rows)
    data = get_task("local").load(local_config(path, subgroup="kind"), seed=0)
    for examples in data.splits.values():
        assert examples.subgroups == tuple(kind_of[text] for text in examples.texts)
    assert get_task("local").load(local_config(path), seed=0).test.subgroups is None
    rows[5]["kind"] = ""
    path = write_rows(tmp_path / "b.csv", rows)
    with pytest.raises(W2SError, match=r"no value in column 'kind' \(task.subgroup\), .* row 6"):
        get_task("local").load(local_config(path, subgroup="kind"), seed=0)


def test_test_rows_do_not_depend_on_the_other_sizes(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", numbered_rows(90))
    one, two = (get_task("local").load(local_config(path, n_weak=n), 0) for n in (8, 20))
    assert one.test.ids == two.test.ids


def test_rows_are_shuffled_before_they_are_taken(tmp_path: Path) -> None:
    cfg = local_config(write_rows(tmp_path / "a.jsonl", numbered_rows(900)))
    data = get_task("local").load(cfg, 0)
    assert max(int(text.split()[1]) for text in data.weak.texts) > 300


def test_headerless_tsv_by_position_keeps_quotes(tmp_path: Path) -> None:
    lines = [f'he said " {i} , and left\t{i % 2}' for i in range(40)]
    path = tmp_path / "a.tsv"
    path.write_text("\n".join(lines))
    cfg = local_config(path, text="0", label="1")
    data = get_task("local").load(cfg, 0)
    check_schema(data, cfg)
    assert all(text.startswith('he said " ') for text in data.weak.texts)


def test_csv_quotes_newlines_and_words_like_null(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    body = "".join(f'"a ""{i}"",\nb",{("null", "NA")[i % 2]}\n' for i in range(40))
    path.write_text("text,label\n" + body)
    data = get_task("local").load(local_config(path), 0)
    assert data.class_names == ("NA", "null")
    assert all(text.endswith('",\nb') for text in data.test.texts)


def test_csv_without_quoting(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text;label\n" + "".join(f'"a {i};{i % 2}\n' for i in range(40)))
    data = get_task("local").load(local_config(path, quoted=False, delimiter=";"), 0)
    assert all(text.startswith('"a ') for text in data.test.texts)


def test_pairs_bools_and_declared_classes(tmp_path: Path) -> None:
    rows = [{"a": f"p {i}", "b": f"h {i}", "ok": bool(i % 2)} for i in range(40)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    cfg = local_config(path, text="a", text_pair="b", label="ok", classes=("True", "False"))
    data = get_task("local").load(cfg, 0)
    check_schema(data, cfg)
    assert data.weak.pairs is not None
    for text, second, label in zip(data.weak.texts, data.weak.pairs, data.weak.labels, strict=True):
        number = int(text.split()[1])
        assert second == f"h {number}"
        assert label == 1 - number % 2


def test_truths_are_spelled_alike_in_all_files(tmp_path: Path) -> None:
    """As words among other labels, in a file that has no other; as truths where none has."""
    words = ("true", "false", "half-true")
    rows: list[dict[str, object]] = [
        {"text": f"item {i}", "label": words[i % 3]} for i in range(90)
    ]
    path = write_rows(tmp_path / "a.csv", rows)
    two: list[dict[str, object]] = [
        {"text": f"other {i}", "label": words[i % 2]} for i in range(40)
    ]
    other = write_rows(tmp_path / "b.csv", two)
    shared = {"balance": False, "n_weak": 9, "n_transfer": 12}
    apart = get_task("local").load(local_config(path, test_path=str(other), **shared), 0)
    assert apart.class_names == ("false", "half-true", "true")
    declared = local_config(other, classes=("false", "true", "half-true"), **shared)
    assert get_task("local").load(declared, 0).class_names == ("false", "true", "half-true")
    titles: list[dict[str, object]] = [
        {"text": f"third {i}", "label": words[i % 2].title()} for i in range(40)
    ]
    plain = write_rows(tmp_path / "c.csv", titles)
    mixed = get_task("local").load(local_config(other, test_path=str(plain)), 0)
    assert len(mixed.class_names) == 2


def test_many_classes_are_sorted_as_numbers(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": float(i % 11)} for i in range(200)]
    cfg = local_config(
        write_rows(tmp_path / "a.parquet", rows), n_weak=22, n_transfer=33, n_test=40
    )
    data = get_task("local").load(cfg, 0)
    assert data.class_names == tuple(map(str, range(11)))
    check_schema(data, cfg)


def test_groups_are_never_split(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", numbered_rows(120))
    cfg = local_config(path, group="doc")
    data = get_task("local").load(cfg, 0)
    check_schema(data, cfg)
    parts = (data.weak, data.transfer, data.test)
    owners = [{int(t.split()[1]) // 3 for t in part.texts} for part in parts]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    assert any(len(docs) < len(part) for docs, part in zip(owners, parts, strict=True))


def test_equal_texts_are_one_group_whatever_their_case(tmp_path: Path) -> None:
    rows = [{"text": ("Same  text" if i % 3 else "same text"), "label": i % 2} for i in range(30)]
    data = get_task("local").load(
        local_config(write_rows(tmp_path / "a.jsonl", rows + numbered_rows(60))), 0
    )
    homes = [
        any(text.casefold().startswith("same") for text in part.texts)
        for part in (data.weak, data.transfer, data.test)
    ]
    assert sum(homes) <= 1


def test_separate_test_file_drops_related_training_rows(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", numbered_rows(60))
    test = write_rows(tmp_path / "test.jsonl", numbered_rows(30, start=40))
    cfg = local_config(train, test_path=str(test), group="doc")
    data = get_task("local").load(cfg, 0)
    check_schema(data, cfg)
    assert all(int(text.split()[1]) >= 40 for text in data.test.texts)
    # document 13 holds the rows 39 to 41, so row 39 is related to the test file
    used = {int(t.split()[1]) for part in (data.weak, data.transfer) for t in part.texts}
    assert max(used) < 39


def test_files_are_related_through_groups_and_through_texts(tmp_path: Path) -> None:
    """Document 13 is cut by the files: rows 39 and 40 are in one, row 41 is in the other."""
    train = write_rows(tmp_path / "train.jsonl", [*numbered_rows(41), *numbered_rows(2, start=60)])
    test = write_rows(tmp_path / "test.jsonl", numbered_rows(30, start=41))
    cfg = local_config(train, test_path=str(test), group="doc", n_weak=14, n_transfer=24)
    data = get_task("local").load(cfg, 0)
    check_schema(data, cfg)
    used = {int(t.split()[1]) for part in (data.weak, data.transfer) for t in part.texts}
    assert used < set(range(39))  # all of 0 ... 38 but one
    plain = replace(cfg, group=None, n_transfer=26)
    data = get_task("local").load(plain, 0)
    used = {int(t.split()[1]) for part in (data.weak, data.transfer) for t in part.texts}
    assert used < set(range(41))


def test_unbalanced_draw_keeps_the_share(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": int(i % 10 == 0)} for i in range(3000)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    cfg = local_config(path, balance=False, n_weak=500, n_transfer=500, n_test=500)
    data = get_task("local").load(cfg, 0)
    assert 0.06 < data.transfer.labels.mean() < 0.14
