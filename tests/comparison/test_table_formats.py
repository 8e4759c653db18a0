"""``report --from`` reads what Excel and others write, and its advice names its own options."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.prediction_files import draw, write_seed

from w2s_fast import W2SError
from w2s_fast.cli.main import main
from w2s_fast.comparison.file_results import results_of_files
from w2s_fast.comparison.table_format import TableFormat, option_names
from w2s_fast.errors import DataWarning

EXCEL = TableFormat(encoding="cp1252", delimiter=";")


def as_excel_writes(folder: Path) -> None:
    """Write files of a European Excel: semicolons, decimal commas, and bytes of Windows."""
    write_seed(folder, None, draw(12))
    for path in folder.glob("*.csv"):
        text = path.read_text().replace(",", ";").replace("0.", "0,").replace("item", "Größe")
        path.write_bytes(text.encode("cp1252"))


def test_files_of_excel_have_the_numbers_of_others(tmp_path: Path) -> None:
    for name in ("usual", "excel"):
        (tmp_path / name).mkdir()
    write_seed(tmp_path / "usual", None, draw(12))
    as_excel_writes(tmp_path / "excel")
    expected = results_of_files(tmp_path / "usual")
    found = results_of_files(tmp_path / "excel", EXCEL)
    for part in ("runs", "summary", "differences", "warnings"):
        assert found[part] == expected[part]
    options = ["--encoding=cp1252", "--delimiter", ";", "--quoted=true"]
    assert main(["report", "--from", str(tmp_path / "excel"), *options]) == 0
    stored = json.loads((tmp_path / "excel" / "report" / "results.json").read_bytes())
    assert stored["runs"] == expected["runs"]


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ((), "it looks like cp1252, so set --encoding=cp1252"),
        (("--encoding=cp1252",), "looks like --delimiter=';', --quoted=true, so set those"),
        (("--encoding=x",), "--encoding='x' is unknown"),
        (("--delimiter=ab",), "--delimiter='ab': expected one character"),
        (("--quoted=yes",), "--quoted is 'yes'; expected true or false"),
        (("--header=true",), "report takes only --from FOLDER, --out DIR, --encoding, --delimiter"),
    ],
)
def test_advice_names_options_of_report(
    options: tuple[str, ...], advice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_excel_writes(tmp_path)
    for path in tmp_path.glob("*.csv"):
        path.write_bytes(path.read_bytes().replace(b"Gr\xf6", b"\x80Gr\xf6"))
    assert main(["report", "--from", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert advice in error and "task." not in error


def test_formats_are_for_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--out", str(tmp_path), "--encoding=cp1252"]) == 2
    assert "--encoding is for the files of --from" in capsys.readouterr().err


def test_bytes_of_parquet_have_the_encoding(tmp_path: Path) -> None:
    drawn = draw(12)
    write_seed(tmp_path, None, drawn)
    (tmp_path / "weak.csv").unlink()
    ids = [f"é{name}".encode("latin-1") for name in drawn["ids"]]
    table = {"id": ids, "gold": drawn["gold"], "prob": drawn["probs"]["weak"]}
    pq.write_table(pa.table(table), tmp_path / "weak.parquet")
    with pytest.raises(W2SError, match="so set --encoding=latin-1"):
        results_of_files(tmp_path)
    with pytest.raises(W2SError, match="items of weak"):  # the others have no accent
        results_of_files(tmp_path, TableFormat(encoding="latin-1"))


def test_warnings_name_options_too(tmp_path: Path) -> None:
    write_seed(tmp_path, None, draw(12))
    for path in tmp_path.glob("*.csv"):
        path.write_text(path.read_text().replace("item", "größe"), encoding="utf-8")
    with pytest.warns(DataWarning, match=r"latin-1 \(--encoding\).*set --encoding=utf-8"):
        results_of_files(tmp_path, TableFormat(encoding="latin-1"))


def test_names_of_files_stay_as_they_are() -> None:
    with (
        pytest.raises(W2SError, match=r"^a/task\.text\.csv: see --text-pair and --text$"),
        option_names(),
    ):
        raise W2SError("a/task.text.csv: see task.text_pair and task.text")
