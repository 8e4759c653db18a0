"""CSV, TSV and JSONL as people have them: every encoding, delimiter and quoting.

A table is read back equal, or one line names the setting that reads it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from helpers.task_data import fails, local_config
from hypothesis import example, given, settings
from hypothesis import strategies as st

from w2s_fast.errors import DataWarning, W2SError
from w2s_fast.integrations.batches import read_labels
from w2s_fast.tasks import TaskConfig, get_task
from w2s_fast.tasks import _files as files
from w2s_fast.tasks._encoding import likely_encoding
from w2s_fast.tasks._files import read_table

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1",
             "cp1252", "shift_jis", "gb18030")  # fmt: skip
# Letters, what separates and encloses values, and what begins like a byte order mark.
_CELLS = st.text(
    st.sampled_from(list("ab01 ,;|\t\"'\n\r")) | st.characters(exclude_categories=["Cs"]),
    max_size=12,
)


def load(path: Path, **options: object) -> list[str]:
    data = get_task("local").load(local_config(path, **options), 0)
    return sorted(t for part in (data.weak, data.transfer, data.test) for t in part.texts)


def rows(n: int = 40, text: str = "item {}") -> list[tuple[str, str]]:
    return [(text.format(i), str(i % 2)) for i in range(n)]


def as_text(table: list[tuple[str, ...]], **options: object) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, **options).writerows(table)  # type: ignore[arg-type]
    return out.getvalue()


@st.composite
def _tables(draw: st.DrawFn) -> list[tuple[str, ...]]:
    width = draw(st.integers(2, 4))
    names = tuple(f"c{i}" for i in range(width))
    return [names, *draw(st.lists(st.tuples(*[_CELLS] * width), min_size=1, max_size=6))]


def _written(path: Path, content: str, encoding: str) -> bool:
    try:
        path.write_bytes(content.encode(encoding))
    except UnicodeEncodeError:
        return False
    return True


def _read(path: Path, **options: object) -> list[tuple[str, ...]] | str:
    """The table with its header, or the message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            table = read_table(path, **options)  # type: ignore[arg-type]
    except W2SError as error:
        assert "\n" not in str(error)
        return str(error)
    columns = [column.to_pylist() for column in table.columns]
    return [tuple(table.column_names), *zip(*columns, strict=True)]


def _check_read_back(
    table: list[tuple[str, ...]], content: str, delimiter: str, quoted: bool, encoding: str
) -> None:
    """Check that the content of a file gives the table, or that its NULs are said to be odd."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        if not _written(path, content, encoding):
            return
        got = _read(path, delimiter=delimiter, quoted=quoted, encoding=encoding)
    assert got == table or (isinstance(got, str) and "\0" in content and "encoding" in got)


@settings(max_examples=200, deadline=None)
@given(_tables(), st.sampled_from(ENCODINGS), st.sampled_from(",;\t|"), st.booleans(),
       st.sampled_from(["\n", "\r\n", "\r"]))  # fmt: skip
@example([("a", "b"), ("\ufeffx", '"')], "utf-16", ";", False, "\r")
def test_quoted_tables_are_read_back(
    table: list[tuple[str, ...]], encoding: str, delimiter: str, all_: bool, end: str
) -> None:
    if not all_:  # Python's writer encloses only the line breaks that it writes itself
        drop = str.maketrans("", "", "\r\n".translate(str.maketrans("", "", end)))
        table = [tuple(cell.translate(drop) for cell in row) for row in table]
    quoting = csv.QUOTE_ALL if all_ else csv.QUOTE_MINIMAL
    content = as_text(table, delimiter=delimiter, quoting=quoting, lineterminator=end)
    _check_read_back(table, content, delimiter, True, encoding)


@settings(max_examples=100, deadline=None)
@given(_tables(), st.sampled_from(ENCODINGS), st.sampled_from(",;\t|"))
def test_tables_without_quotes_are_read_back(
    table: list[tuple[str, ...]], encoding: str, delimiter: str
) -> None:
    drop = str.maketrans("", "", f"{delimiter}\n\r")
    table = [tuple(cell.translate(drop) for cell in row) for row in table]
    content = "".join(delimiter.join(row) + "\n" for row in table)
    _check_read_back(table, content, delimiter, False, encoding)


@settings(max_examples=100, deadline=None)
@given(_tables(), st.sampled_from(ENCODINGS[:5]), st.sampled_from(",;\t|"))
def test_tables_of_pandas_are_read_back(
    table: list[tuple[str, ...]], encoding: str, delimiter: str
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        table = [tuple(cell.replace("\r", "") for cell in row) for row in table]
        frame = pandas.DataFrame(table[1:], columns=list(table[0]))
        frame.to_csv(path, sep=delimiter, encoding=encoding, index=False)
        got = _read(path, delimiter=delimiter, encoding=encoding)
    assert got == table or (isinstance(got, str) and any("\0" in c for row in table for c in row))


@settings(max_examples=150, deadline=None)
@given(_tables(), st.sampled_from(",;\t|"), st.sampled_from(",;\t|"), st.booleans(), st.booleans())
def test_a_wrong_dialect_is_one_line_or_the_file_means_that(
    table: list[tuple[str, ...]], written: str, read: str, quoted: bool, all_: bool
) -> None:
    """What is read otherwise than written is a table in the dialect given: as wide in each row."""
    quoting = csv.QUOTE_ALL if all_ else csv.QUOTE_MINIMAL
    content = as_text(table, delimiter=written, quoting=quoting)
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        path.write_bytes(content.encode())
        got = _read(path, delimiter=read, quoted=quoted)
    if isinstance(got, str):
        assert "task.delimiter" in got or "task.quoted" in got or "no rows" in got, got
    elif read == written and quoted:
        assert got == table
    else:
        assert len({len(row) for row in got}) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_CELLS, _CELLS), min_size=1, max_size=5), st.sampled_from(ENCODINGS))
def test_json_lines_are_read_back(table: list[tuple[str, str]], encoding: str) -> None:
    lines = [json.dumps({"a": a, "b": b}, ensure_ascii=False) + "\n" for a, b in table]
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        if _written(path, "".join(lines), encoding):
            assert _read(path, encoding=encoding) == [("a", "b"), *table]


GERMAN = rows(text="Café Nr. {} für Zoë") + rows(4, "Straße {}")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32"),
        ("latin-1", "latin-1"),
        ("cp1252", "cp1252"),
        ("shift_jis", None),
    ],
)
def test_a_file_in_another_encoding_names_the_likely_one(
    tmp_path: Path, suffix: str, written: str, named: str | None
) -> None:
    text = {"cp1252": "Café „Nr. {}“ für Zoë", "shift_jis": "日本語 {}"}.get(
        written, "Café Nr. {} für Zoë"
    )
    table = rows(text=text)
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        content = as_text([("text", "label"), *table])
    else:
        lines = [json.dumps({"text": t, "label": y}, ensure_ascii=False) for t, y in table]
        content = "\n".join(lines)
    path.write_bytes(content.encode(written))
    words = (
        ["task.encoding"] if named is None else [f"it looks like {named}", f"task.encoding={named}"]
    )
    fails(lambda: load(path), f"a{suffix}", "utf-8", *words)
    sizes = {"n_weak": 12, "n_transfer": 14, "n_test": 14}
    assert load(path, encoding=written, **sizes) == sorted(t for t, _ in table)


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    content = as_text([("text", "label"), *rows()])
    expected = load(_path(tmp_path / "a.csv", content.encode()))
    for name in ("utf-8-sig", "utf-8"):
        path = _path(tmp_path / "b.csv", content.encode("utf-8-sig"))
        assert load(path, encoding=name) == expected
    lines = "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows())
    assert load(_path(tmp_path / "b.jsonl", lines.encode("utf-8-sig"))) == expected
    packed = gzip.compress(content.encode("utf-16"))
    assert load(_path(tmp_path / "b.csv.gz", packed), encoding="utf-16") == expected


def _path(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_damaged_utf8_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    content = as_text([("text", "label"), *GERMAN]).encode()
    path = _path(tmp_path / "a.csv", content.replace("ë".encode(), b"\xc3", 1))
    fails(lambda: load(path), "byte ", "0xc3", "line 2", "repair the text")
    assert likely_encoding(path.read_bytes()) is None


def test_utf8_read_as_latin1_is_a_warning(tmp_path: Path) -> None:
    path = _path(tmp_path / "a.csv", as_text([("text", "label"), *GERMAN]).encode())
    with pytest.warns(DataWarning, match=r"is read as latin-1 .* is valid UTF-8"):
        load(path, encoding="latin-1")
    fails(lambda: load(path, encoding="utf-16"), "task.encoding=utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(
            _path(path, as_text([("text", "label"), *GERMAN]).encode("latin-1")), encoding="cp1252"
        )


def test_utf16_read_as_latin1_is_refused(tmp_path: Path) -> None:
    path = _path(tmp_path / "a.csv", as_text([("text", "label"), *rows()]).encode("utf-16"))
    fails(lambda: load(path, encoding="latin-1"), "looks like utf-16", "task.encoding=utf-16")


def test_binary_columns_have_the_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [text.encode("latin-1") for text, _ in GERMAN]
    table = pyarrow.table({"text": texts, "label": [y for _, y in GERMAN]})
    pyarrow.parquet.write_table(table, path)
    fails(lambda: load(path), "row 1 of column 'text'", "task.encoding=latin-1")
    assert load(path, encoding="latin-1")[0].startswith("Café")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("uft-8", "did you mean 'utf-8'?"),
        ("", "is unknown"),
        ("utf-8\0", "is unknown"),
        ("rot13", "does not decode text"),
        ("zip", "does not decode text"),
    ],
)
def test_names_of_encodings_are_checked(name: str, words: str) -> None:
    fails(lambda: TaskConfig(encoding=name), f"task.encoding={name!r}", words)


def test_codecs_that_give_half_a_surrogate_pair_are_refused(tmp_path: Path) -> None:
    path = _path(
        tmp_path / "a.csv", as_text([("text", "label"), *rows(text="a \\ud800 {}")]).encode()
    )
    fails(lambda: load(path, encoding="unicode_escape"), "task.encoding=utf-8")


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_is_named(tmp_path: Path, delimiter: str) -> None:
    table = [("text", "label"), *rows(text="one, two and {}")]
    path = _path(tmp_path / "a.csv", as_text(table, delimiter=delimiter).encode())
    fails(lambda: load(path), f"task.delimiter={delimiter!r}")
    plain = _path(tmp_path / "b.csv", as_text([table[0], *rows()], delimiter=delimiter).encode())
    fails(lambda: load(plain), "has one column", f"task.delimiter={delimiter!r}, task.quoted=true")
    bare = _path(tmp_path / "c.csv", as_text(rows(), delimiter=delimiter).encode())
    fails(lambda: load(bare, text="0", label="1"), f"task.delimiter={delimiter!r}")
    assert load(plain, delimiter=delimiter) and load(bare, text="0", label="1", delimiter=delimiter)


def test_another_quoting_is_named(tmp_path: Path) -> None:
    table = [("text", "label"), *rows(text="two\nlines, {}")]
    path = _path(tmp_path / "a.tsv", as_text(table, delimiter="\t").encode())
    fails(lambda: load(path), "line 2 has 1 values, the first has 2", "task.quoted=true")
    assert load(path, quoted=True)[0].startswith("two\nlines")
    lines = ["text,label", *(f'"Great" film {i},{i % 2}' for i in range(40))]
    path = _path(tmp_path / "b.csv", "\n".join(lines).encode())
    fails(
        lambda: load(path), "line 2", "',' is missing after a '\"' that closes", "task.quoted=false"
    )
    assert load(path, quoted=False)[0].startswith('"Great" film')


@pytest.mark.parametrize("at", [1, 20, 40])
def test_a_quote_that_nothing_closes_is_named(tmp_path: Path, at: int) -> None:
    """Wherever it is: in the last row it used to become part of the value."""
    lines = ["text,label", *(f"item {i},{i % 2}" for i in range(40))]
    lines[at] = f'"{lines[at]}'
    path = _path(tmp_path / "a.csv", "\n".join(lines).encode())
    fails(lambda: load(path), f"from line {at + 1} on", "none closes it", "task.quoted=false")


def test_a_row_of_another_width_is_named(tmp_path: Path) -> None:
    path = _path(tmp_path / "a.csv", b"text,label\na,0\nb, really,1\nc,0\n")
    fails(lambda: load(path), "a.csv: line 3 has 3 values, the first has 2", "enclose values")
    path = _path(tmp_path / "a.tsv", b"text\tlabel\na\t0\nb\n")
    fails(lambda: load(path), "line 3 has 1 values", "remove '\\t'")


@pytest.mark.parametrize("mark", ["||", '"', "\n", "\0", " ", ""])
def test_delimiters_are_checked(mark: str) -> None:
    fails(lambda: TaskConfig(delimiter=mark), f"task.delimiter={mark!r}", "one character")


@pytest.mark.parametrize("name", ["label", "Sentiment (1-5)"])
def test_a_header_is_not_taken_for_an_example(tmp_path: Path, name: str) -> None:
    """Columns are given by position, and the first row is the only one of its class."""
    path = _path(tmp_path / "a.csv", as_text([("what they wrote", name), *rows()]).encode())
    by_position = {"text": "0", "label": "1"}
    fails(lambda: load(path, **by_position), "row 1", repr(name), "task.header=true")
    fails(lambda: load(path, **by_position, classes=("0", "1")), "task.header=true")
    assert load(path, **by_position, header=True)
    sizes = {"n_weak": 12, "n_transfer": 14, "n_test": 14, "balance": False}
    assert "what they wrote" in load(path, **by_position, header=False, **{**sizes, "n_weak": 13})
    assert load(_path(path, as_text(rows()).encode()), **by_position)


def test_a_header_of_pairs_is_not_taken_for_one(tmp_path: Path) -> None:
    table = [("chosen", "rejected"), *((f"Number {i}, gladly.", "No.") for i in range(40))]
    path = _path(tmp_path / "a.csv", as_text(table).encode())
    cfg = local_config(path, name="pairs", chosen="0", rejected="1")
    fails(lambda: get_task("pairs").load(cfg, 0), "'chosen', 'rejected'", "task.header=true")


def test_json_that_is_no_json_lines(tmp_path: Path) -> None:
    table = [{"text": t, "label": y} for t, y in rows()]
    path = _path(tmp_path / "a.json", json.dumps(table, indent=1).encode())
    fails(lambda: load(path), "is a JSON array", "one object per line")
    path.write_text('{"text": "half a \\ud800 pair", "label": 1}\n')
    fails(lambda: load(path), "surrogate pair", "in row 0")


def test_dates_in_json_are_the_strings_they_are(tmp_path: Path) -> None:
    lines = [{"text": f"20{i + 10}-01-01", "label": ("2020-01-01", "2021-01-01")[i % 2]}
             for i in range(40)]  # fmt: skip
    path = _path(tmp_path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in lines).encode())
    data = get_task("local").load(local_config(path), 0)
    assert data.class_names == ("2020-01-01", "2021-01-01")
    assert all(len(text) == 10 for text in data.weak.texts)


def test_a_file_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MAX_BYTES", 1 << 20)
    path = _path(tmp_path / "a.csv.gz", gzip.compress(b"text,label\n" + b"a,0\n" * (1 << 19)))
    fails(lambda: load(path), "a.csv.gz has more than", "split it")


def test_local_copies_of_hub_sets_have_the_settings_too(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        table = [("sentence", "label"), *rows(text=f"{split} Café {{}}")]
        content = as_text(table, delimiter=";").encode("latin-1")
        _path(tmp_path / f"{split}.csv", content)
    cfg = local_config(tmp_path, name="sst2")
    fails(lambda: get_task("sst2").load(cfg, 0), "train.csv", "task.encoding=latin-1")
    fails(lambda: get_task("sst2").load(replace(cfg, encoding="cp1252"), 0), "delimiter=';'")
    data = get_task("sst2").load(replace(cfg, encoding="latin-1", delimiter=";"), 0)
    assert "Café" in data.weak.texts[0]


def test_weak_labels_in_another_form_name_no_setting_of_tasks_alone(tmp_path: Path) -> None:
    content = "id;probs\na;0.5\nb;0.25\n"
    for data in (content.encode(), content.replace(";", ",").encode("utf-16")):
        path = _path(tmp_path / "a.csv", data)
        fails(lambda path=path: read_labels(path), "a.csv", "save the table as UTF-8 with commas")
