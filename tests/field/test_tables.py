"""Tables as people have them: what stands in the file is what is trained on; what is ambiguous is refused."""

import csv
import datetime
import decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from common.data.examples import Columns, read_examples
from common.errors import DataError

UNLABELLED = Columns(label=None)


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(path: Path, columns: Columns = UNLABELLED) -> list[str]:
    found = read_examples(path, columns).texts
    assert found is not None
    return found


def refused(path: Path, columns: Columns | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_examples(path, columns or Columns())
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


# Quotation marks.


def test_two_stray_quotation_marks_would_make_two_rows_of_four(tmp_path: Path) -> None:
    rows = '"it is good,pos\nit is bad",neg\n"it is fine,pos\nit is ugly",neg\n'
    told = refused(put(tmp_path / "x.csv", "text,label\n" + rows))
    assert told.startswith(": lines 2 to 3 are one row by their quotation marks, and 2 rows by their sep")


def test_the_same_with_the_label_in_front(tmp_path: Path) -> None:
    told = refused(put(tmp_path / "x.csv", 'label,text\npos,"good\nneg,bad"\npos,fine\n'))
    assert ": lines 2 to 3 are one row" in told


def test_a_quotation_mark_that_swallows_rows_in_the_middle_of_a_file(tmp_path: Path) -> None:
    told = refused(put(tmp_path / "x.csv", 'text,label\na,pos\n"b,neg\nc,pos\nd",neg\ne,pos\n'))
    assert ": lines 3 to 5 are one row by their quotation marks, and 3 rows by their separators" in told


@pytest.mark.parametrize(
    "text",
    [
        "Dear Sir,\nI write, again",
        "Hello, you\nbye",
        "it cost 1,000\nand more",
        "first\nsecond\n\nthird",
        'say "no",\nsay "yes", say',
        "a list:\n- one,\n- two,\n- three",
    ],
)
def test_a_text_of_several_lines_that_is_one_stays_one(tmp_path: Path, text: str) -> None:
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], [text, "neg"], ["short", "pos"]])
    examples = read_examples(tmp_path / "x.csv", Columns())
    assert examples.texts == [text, "short"]
    assert examples.notes == (
        f"{tmp_path}/x.csv: 1 row of several lines each, by their quotation marks: from line 2",
    )
    assert examples.name_of(1) == f"{tmp_path}/x.csv: line {3 + text.count(chr(10))}"


def test_a_quotation_mark_that_is_never_closed_names_the_line_that_opens_it(tmp_path: Path) -> None:
    told = refused(put(tmp_path / "x.csv", 'text,label\na,pos\n"b,neg\nc,pos\nd,neg\n'))
    assert told.startswith(": line 3 opens a quotation mark that is never closed; close it, or double it")


@pytest.mark.parametrize("row", ['"he said "hi" to me",pos', '"he said \\"hi\\"",pos', '"a" ,pos'])
def test_what_follows_a_closing_quotation_mark_is_refused(tmp_path: Path, row: str) -> None:
    told = refused(put(tmp_path / "x.csv", f"text,label\nx,neg\n{row}\n"))
    assert ": line 3 has more than a separator behind a closing quotation mark" in told


def test_a_quotation_mark_within_a_text_is_text(tmp_path: Path) -> None:
    examples = read_examples(put(tmp_path / "x.csv", 'text,label\n5" nails,pos\nmy 6\' 2",neg\n'), Columns())
    assert examples.texts == ['5" nails', "my 6' 2\""]


def test_a_blank_before_a_quotation_mark_makes_it_text_so_it_is_refused(tmp_path: Path) -> None:
    told = refused(put(tmp_path / "x.csv", 'label,text\npos, "good"\n'))
    assert ": line 2 has a blank before a quotation mark" in told


def test_quoted_values_in_tsv_are_told(tmp_path: Path) -> None:
    path = put(tmp_path / "x.tsv", 'text\tlabel\n"a ""b"""\tx\nc\ty\n')
    examples = read_examples(path, Columns())
    assert examples.texts == ['"a ""b"""', "c"]
    assert examples.notes == (f"{path}: 1 value in quotation marks, which are text in TSV: line 2",)


# Rows and lines.


def test_a_row_with_too_many_or_too_few_fields_names_its_line(tmp_path: Path) -> None:
    told = refused(put(tmp_path / "x.csv", "text,label\na,x\n\nfine, I think,y\n"))
    assert (
        told
        == ': line 4 has 3 fields, the header has 2; put a text that holds a comma in quotation marks ("")'
    )
    assert ": line 3 has 1 field, the header has 2" in refused(
        put(tmp_path / "x.csv", "text,label\na,x\nb\n")
    )
    assert "line 2 has 3 fields" in refused(put(tmp_path / "x.tsv", "text\tlabel\na\tb\tc\n"))


def test_blank_lines_are_left_out_and_counted_save_at_the_end(tmp_path: Path) -> None:
    path = put(tmp_path / "x.csv", "text,label\na,x\n\n  \n,\nb,y\n\n\n")
    examples = read_examples(path, Columns())
    assert examples.texts == ["a", "b"]
    assert examples.notes == (f"{path}: 3 blank lines left out: line 3, 4, 5",)
    path = put(tmp_path / "y.jsonl", '{"text": "a"}\n\n{"text": "b"}\n\n')
    examples = read_examples(path, UNLABELLED)
    assert examples.texts == ["a", "b"] and examples.name_of(1) == f"{path}: line 3"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_line_ends_and_byte_order_marks_of_every_system(tmp_path: Path, ending: str, mark: bytes) -> None:
    files = {
        "x.csv": ["text,label", "a,x", '"b, c",y'],
        "x.tsv": ["text\tlabel", "a\tx", "b, c\ty"],
        "x.jsonl": ['{"text": "a", "label": "x"}', '{"text": "b, c", "label": "y"}'],
    }
    for name, lines in files.items():
        path = put(tmp_path / name, mark + ending.join([*lines, ""]).encode())
        examples = read_examples(path, Columns())
        assert (examples.texts, examples.label_names, examples.notes) == (["a", "b, c"], ["x", "y"], ())


@pytest.mark.parametrize("size", [200_000, 5_000_000])
def test_a_text_of_any_size_is_read(tmp_path: Path, size: int) -> None:
    """pyarrow's blocks are of 1 MiB, the csv module's fields of 128 KiB."""
    long = "word " * (size // 5)
    put(tmp_path / "x.csv", f"text,label\n{long},x\n")
    put(tmp_path / "x.tsv", f"text\tlabel\n{long}\tx\n")
    put(tmp_path / "x.jsonl", f'{{"text": "{long}", "label": "x"}}\n')
    for name in ("x.csv", "x.tsv", "x.jsonl"):
        assert texts(tmp_path / name) == [long]


# Columns.


@pytest.mark.parametrize(
    ("name", "header", "told"),
    [
        (
            "x.csv",
            "text;label\na;b",
            "its columns are: text;label; semicolons separate them: save the file with c",
        ),
        ("x.csv", "text\tlabel\na\tb", "tabs separate them"),
        ("x.tsv", "text,label\na,b", "commas separate them: save the file with tabs as .tsv"),
        (
            "x.csv",
            "text, label\na, b",
            "its columns are: text, ' label'; ' label' differs in blanks or case only",
        ),
        ("x.csv", "text,Label\na,b", "'Label' differs in blanks or case only"),
        ("x.csv", "text,label,label\na,b,c", "more than one column 'label'"),
        ("x.jsonl", '{"text": "a", "Label": "b"}', "'Label' differs in blanks or case only"),
    ],
)
def test_a_column_that_is_not_there_is_told_with_what_looks_like_it(
    tmp_path: Path, name: str, header: str, told: str
) -> None:
    assert told in refused(put(tmp_path / name, header + "\n"))


def test_an_unnamed_or_other_column_does_no_harm(tmp_path: Path) -> None:
    path = put(tmp_path / "x.csv", ",text,label,\n0,a,x,\n1,b,y,\n")
    assert texts(path) == ["a", "b"]


# Values.

VALUES = [
    "007",
    "1.0",
    "1e5",
    "NA",
    "null",
    "None",
    "NaN",
    "true",
    "True",
    "2020-01-01",
    "12345678901234567890123",
]


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_value_is_the_text_that_stands_in_the_file(tmp_path: Path, ending: str) -> None:
    separator = "," if ending == ".csv" else "\t"
    rows = "".join(f"{value}{separator}{value}\n" for value in VALUES)
    examples = read_examples(put(tmp_path / f"x{ending}", f"text{separator}label\n{rows}"), Columns())
    assert examples.texts == VALUES and examples.label_names == VALUES


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1.0", "1.0"),
        ("1", "1"),
        ("-0", "-0"),
        ("1e5", "1e5"),
        ("1E+5", "1E+5"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("0.1000", "0.1000"),
        ("true", "true"),
        ('"True"', "True"),
        ('"007"', "007"),
        ('"2020-01-01"', "2020-01-01"),
        ('"2020-01-01T00:00:00Z"', "2020-01-01T00:00:00Z"),
        ('"null"', "null"),
        ('"a\\nb"', "a\nb"),
    ],
)
def test_a_value_in_json_is_the_text_that_stands_in_the_file(tmp_path: Path, written: str, read: str) -> None:
    """pyarrow makes 1 of 1.0 and a time of a date, as it guesses a type for the column."""
    path = put(tmp_path / "x.jsonl", f'{{"text": {written}}}\n{{"text": "words"}}\n')
    assert texts(path) == [read, "words"]
    path = put(tmp_path / "x.json", f'[\n{{"text": {written}}}\n]')
    assert texts(path) == [read]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text": NaN}', 'line 2 holds NaN, which is no value in JSON; write null, or a text ("NaN")'),
        ('{"text": 007}', "line 2 is not JSON (expecting ',' delimiter, column 11)"),
        ('{"text": "a", "text": "b"}', "line 2 has more than one 'text'"),
        ('{"txt": "a"}', "line 2 has no 'text'; its keys are: txt"),
        ('{"text": ["a"]}', "line 2: 'text' is a list, but a text in rows before"),
        ('{"text": ["a", ["b"]]}', "line 2: item 2 of 'text' is not text"),
        ('{"text": ["a", "\\ud800"]}', "line 2: 'text' has half of a character (\\ud800)"),
        ('{"text": {"a": 1}}', "line 2: 'text' is not text"),
        ('"a text"', "line 2 is no object"),
        ('["a", "b"]', "line 2 is no object"),
        ('{"text": "\\ud800"}', "line 2: 'text' has half of a character (\\ud800)"),
        ('{"text": ' + "[" * 100_000, "line 2 is nested too deeply"),
        ('{"text": "a"} {"text": "b"}', "line 2 is not JSON (extra data, column 15)"),
    ],
)
def test_a_line_of_json_that_cannot_be_used_is_named(tmp_path: Path, line: str, told: str) -> None:
    path = put(tmp_path / "x.jsonl", f'{{"text": "fine"}}\n{line}\n')
    assert told in refused(path, UNLABELLED)


def test_a_json_array_of_objects_is_a_table_too(tmp_path: Path) -> None:
    path = put(tmp_path / "x.json", ' [{"text": "a", "label": 1},\n {"text": "b", "label": 0}]\n')
    examples = read_examples(path, Columns())
    assert (examples.texts, examples.label_names) == (["a", "b"], ["1", "0"])
    assert examples.name_of(1) == f"{path}: row 2"
    assert "is not JSON (expecting value, column 16)" in refused(put(path, '[{"text": "a"},'))
    assert "row 1 is no object" in refused(put(path, '["a", "b"]'))
    assert "no rows" in refused(put(path, "[]"))
    assert "line 1 is not JSON" in refused(put(path, '{\n "data": [\n]\n}'))


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (pyarrow.array([7, 12345678901234567]), ["7", "12345678901234567"]),
        (pyarrow.array([1.0, 0.1]), ["1.0", "0.1"]),
        (pyarrow.array([1.0, 0.1], pyarrow.float32()), ["1.0", "0.1"]),
        (pyarrow.array([True, False]), ["true", "false"]),
        (pyarrow.array([datetime.date(2020, 1, 1)]), ["2020-01-01"]),
        (pyarrow.array([1577836800000000001], pyarrow.timestamp("ns")), ["2020-01-01 00:00:00.000000001"]),
        (pyarrow.array([decimal.Decimal("1.50")]), ["1.50"]),
        (pyarrow.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
        (pyarrow.array([3, 1, 3]).dictionary_encode(), ["3", "1", "3"]),
        (pyarrow.array(["a", "007"], pyarrow.large_string()), ["a", "007"]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pyarrow.Array) else "",
)
def test_values_in_parquet_are_written_out(tmp_path: Path, values: Any, read: list[str]) -> None:
    parquet.write_table(pyarrow.table({"text": values, "label": values}), tmp_path / "x.parquet")
    examples = read_examples(tmp_path / "x.parquet", Columns())
    assert examples.texts == read and examples.label_names == read


@pytest.mark.parametrize("values", [[[["a"]]], [{"a": 1}], [b"a"]], ids=["list", "struct", "bytes"])
def test_a_column_of_parquet_that_is_no_text_is_named(tmp_path: Path, values: list[Any]) -> None:
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "x.parquet")
    assert "column 'text' holds " in refused(tmp_path / "x.parquet", UNLABELLED)


def test_text_in_parquet_that_is_not_utf8_names_its_row(tmp_path: Path) -> None:
    raw = pyarrow.array([b"fine", b"caf\xe9"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": raw}), tmp_path / "x.parquet")
    assert "row 2 of column 'text' is not UTF-8" in refused(tmp_path / "x.parquet", UNLABELLED)


# No text, no label, nearly the same label.


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("x.csv", 'text,label\na,x\n,y\n"",y\n"  ",x\nb,y\n', "line 3, line 4, line 5"),
        ("x.tsv", "text\tlabel\na\tx\n\ty\n \ty\n\tx\nb\ty\n", "line 3, line 4, line 5"),
        (
            "x.jsonl",
            '{"text": "a", "label": "x"}\n{"text": "", "label": "x"}\n{"text": null, "label": "y"}\n'
            '{"text": "\\u00a0", "label": "y"}\n{"text": "b", "label": "y"}\n',
            "line 2, line 3, line 4",
        ),
    ],
)
def test_rows_without_a_text_are_left_out_and_named(
    tmp_path: Path, name: str, content: str, where: str
) -> None:
    path = put(tmp_path / name, content)
    examples = read_examples(path, Columns())
    assert (examples.texts, examples.label_names) == (["a", "b"], ["x", "y"])
    assert examples.notes == (f"{path}: 3 rows of 5 left out, without a text: {where}",)


def test_a_table_of_nothing_but_empty_texts_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": [None, ""]}), tmp_path / "x.parquet")
    assert refused(tmp_path / "x.parquet", UNLABELLED) == " has no row with a text in column 'text'"


@pytest.mark.parametrize("label", ["", "  ", '""'])
def test_a_row_without_a_label_is_refused(tmp_path: Path, label: str) -> None:
    path = put(tmp_path / "x.csv", f"text,label\na,x\nb,{label}\nc,{label}\nd,{label}\n")
    assert refused(path).startswith(
        ": line 3 has no value in column 'label' (nor have 2 rows more); fill it in"
    )


def test_labels_that_differ_in_blanks_or_case_are_told_and_not_mended(tmp_path: Path) -> None:
    path = put(tmp_path / "x.csv", "text,label\na,pos\nb,Pos\nc,neg\nd, pos\n")
    examples = read_examples(path, Columns())
    assert examples.label_names == ["pos", "Pos", "neg", " pos"]
    told = "labels that differ in blanks or case only, each a class of its own: ' pos' and 'Pos' and 'pos'"
    assert examples.notes == (f"{path}: {told}",)
    with pytest.raises(DataError) as caught:
        examples.class_indices(("neg", "pos"))
    hint = "it differs from 'pos' in blanks or case only (and 1 more row with labels unknown to it)"
    assert str(caught.value) == f"{path}: line 3 has label 'Pos'; the run knows: neg, pos; {hint}"


# Bytes that are something else.


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "x.csv",
            "text,läbel\na,b\n".encode("latin1"),
            ": line 1 is not UTF-8 (byte 0xe4); save the file as UTF-8",
        ),
        (
            "x.csv",
            b"text,label\n" + b"a,b\n" * 9999 + b"caf\xe9,b\n",
            ": line 10001 is not UTF-8 (byte 0xe9)",
        ),
        ("x.csv", b"\xef\xbb\xbftext,label\r\na,b\r\ncaf\xe9,b\r\n", ": line 3 is not UTF-8 (byte 0xe9)"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', ": line 2 is not UTF-8 (byte 0xe9)"),
        ("x.csv", "text,label\na,b\n".encode("utf-16"), " is in UTF-16; save it as UTF-8"),
        ("x.csv", b"text,label\na\0,b\n", ": line 2 has a NUL byte"),
        ("x.csv", b"\n\n \n", " is empty: it has nothing but blank lines"),
        ("x.csv", b"\x1f\x8b\x08\0\0\0", " is gzip'ed; unpack it: gunzip"),
        (
            "x.csv",
            b"PK\x03\x04rest",
            " is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV",
        ),
        ("x.csv", b"PAR1...PAR1", " is a Parquet file; give it the ending .parquet"),
        (
            "x.csv",
            b"<!DOCTYPE html><html>",
            " is a web page, perhaps of an error or a login; download the file",
        ),
        ("x.csv.gz", b"\x1f\x8b\x08\0\0\0", " is packed; unpack it to x.csv"),
        ("x.xlsx", b"PK\x03\x04rest", ": .xlsx is not a known kind; use .csv, .tsv"),
        (
            "x.parquet",
            b"PAR1" + b"x" * 999,
            " cannot be read: its end is missing; download or write it again",
        ),
        ("x.parquet", b"PAR1" + b"x" * 999 + b"PAR1", " cannot be read: it is damaged or incomplete ("),
        ("x.parquet", b"text,label\n", " cannot be read: it is no Parquet file"),
        ("x.parquet", b"", " is empty"),
        ("x.jsonl", b"", " is empty"),
        *(
            (
                name,
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                " is a pointer of Git LFS",
            )
            for name in ("x.csv", "x.tsv", "x.jsonl", "x.parquet")
        ),
    ],
)
def test_a_file_that_is_something_else_is_named_with_what_to_do(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    assert refused(put(tmp_path / name, content)).startswith(told)


def test_half_of_a_download_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": [f"text {i}" for i in range(9999)]}), path)
    whole = path.read_bytes()
    assert "its end is missing" in refused(put(path, whole[: len(whole) // 2]))
    assert "it is damaged or incomplete" in refused(
        put(path, whole[:4] + whole[len(whole) // 2 :]), UNLABELLED
    )


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may be root, who may read everything."""
    path = put(tmp_path / "x.csv", "text,label\na,b\n")

    def refuse(self: Path, *args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    for call in ("open", "stat"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, call, refuse)
            assert refused(path) == " cannot be read: Permission denied"


# Folders of parts.


def test_the_parts_of_a_table_are_read_in_order(tmp_path: Path) -> None:
    for i in range(3):
        table = pyarrow.table({"text": [f"{i} a", f"{i} b"], "label": ["x", "y"]})
        parquet.write_table(table, tmp_path / f"train-0000{i}-of-00003.parquet")
    put(tmp_path / "_SUCCESS", "")
    put(tmp_path / "README.md", "about")
    examples = read_examples(tmp_path, Columns())
    assert examples.texts == ["0 a", "0 b", "1 a", "1 b", "2 a", "2 b"]
    assert examples.name_of(3) == f"{tmp_path}/train-00001-of-00003.parquet: row 2"
    parts = ", ".join(f"train-0000{i}-of-00003.parquet" for i in range(3))
    assert examples.notes == (
        f"{tmp_path}: 3 files read as one table: {parts}",
        f"{tmp_path}: 1 file left out, hidden by name: _SUCCESS",
        f"{tmp_path}: 1 file left out, with the ending .md: README.md",
    )
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    assert refused(tmp_path) == " holds 2 of 3 files; get the others too"


def test_a_folder_of_several_sets_is_refused(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv"):
        put(tmp_path / name, "text,label\na,b\n")
    assert refused(tmp_path).startswith(
        " holds files that may be of several sets (test.csv, train.csv); name"
    )


def test_a_folder_named_as_a_file_is_read_as_parts(tmp_path: Path) -> None:
    """As Spark writes them."""
    name = "part-0000{}-1b4e28ba-2fa1-11d2-883f-0016d3cca427-c000.csv"
    for i in range(2):
        put(tmp_path / "x.csv" / name.format(i), f"text,label\n{i},b\n")
    assert texts(tmp_path / "x.csv") == ["0", "1"]
    assert "line 2 has 1 field" in str(refused_in(tmp_path / "x.csv", name.format(0)))


def refused_in(folder: Path, name: str) -> DataError:
    put(folder / name, "text,label\na\n")
    with pytest.raises(DataError) as caught:
        read_examples(folder, Columns())
    return caught.value


# Words that stay words.


def test_a_file_without_a_header_does_not_fill_the_screen(tmp_path: Path) -> None:
    told = refused(put(tmp_path / "x.csv", "a long review " * 9999 + ",pos\nanother,neg\n"))
    assert len(told) < 300 and told.endswith("; if these are a row, the header is missing")
    told = refused(put(tmp_path / "y.csv", ",".join(f"c{i}" for i in range(5000)) + "\n1\n"))
    assert len(told) < 300 and " and 4,980 more" in told


def test_a_label_that_is_a_whole_text_does_not_fill_the_screen(tmp_path: Path) -> None:
    path = put(tmp_path / "x.csv", "text,label\npos," + "a long review " * 9999 + "\n")
    with pytest.raises(DataError) as caught:
        read_examples(path, Columns()).class_indices(tuple(f"class {i}" for i in range(5000)))
    assert len(str(caught.value).removeprefix(str(path))) < 400


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        ("1.0", "it is '1' written in another way"),
        ("01", "it is '1' written in another way"),
        ("POS", "it differs from 'pos' in blanks or case only"),
        ("pos\u200b", "it differs from 'pos' in blanks or case only"),
        ("\u00a0pos", "it differs from 'pos' in blanks or case only"),
        ("cafe\u0301", "it differs from 'caf\u00e9' in blanks or case only"),
        ("other", "the run knows: 0, 1, pos, caf\u00e9"),
    ],
)
def test_what_may_be_meant_by_an_unknown_label_is_told(tmp_path: Path, label: str, hint: str) -> None:
    path = put(tmp_path / "x.jsonl", f'{{"text": "a", "label": "{label}"}}\n')
    with pytest.raises(DataError) as caught:
        read_examples(path, Columns()).class_indices(("0", "1", "pos", "caf\u00e9"))
    assert str(caught.value).endswith(hint)


def test_a_duration_is_no_text(tmp_path: Path) -> None:
    values = pyarrow.array([1, 2], pyarrow.duration("s"))
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "x.parquet")
    assert refused(tmp_path / "x.parquet", UNLABELLED).startswith(
        ": column 'text' holds duration[s], not text"
    )


@pytest.mark.parametrize("name", ["x.zip", "images.tar.gz", "x.csv.bz2", "x.7z"])
def test_an_archive_is_to_be_unpacked(tmp_path: Path, name: str) -> None:
    assert refused(put(tmp_path / name, b"PK\x03\x04")).startswith(" is packed; unpack it to ")
