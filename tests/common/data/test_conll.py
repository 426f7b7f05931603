"""CoNLL's columns: words and tags by sentence, and what is no such file is told by its line."""

from pathlib import Path

import pytest

from common.data.examples import Columns, Examples, read_examples
from common.errors import DataError
from common.records import TaskKind

UNLABELLED = Columns(label=None)
SHARED_TASK = """\
-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

German JJ B-NP B-MISC
call NN I-NP O
"""


def read(path: Path, content: str, columns: Columns | None = None) -> Examples:
    path.write_text(content, newline="")
    return read_examples(path, columns or Columns())


@pytest.mark.parametrize("ending", [".conll", ".iob", ".bio", ".txt", ".TXT"])
def test_the_shared_tasks_own_form(tmp_path: Path, ending: str) -> None:
    found = read(tmp_path / f"train{ending}", SHARED_TASK)
    assert found.words == [("EU", "rejects"), ("German", "call")]
    assert found.label_lists == [("B-ORG", "O"), ("B-MISC", "O")]
    assert [found.name_of(i) for i in range(2)] == [f"{found.source}: line {n}" for n in (3, 6)]
    assert found.require(TaskKind.TOKEN_CLASSIFICATION) is found


@pytest.mark.parametrize(
    "content",
    [
        "a\tO\nb c\tB-X\n\n\n \nd\tO",
        "\ufeffa\tO\r\nb c\tB-X\r\n\r\nd\tO\r\n",
        "# id 1 domain=x\na\tO\nb c\tB-X\n\n# id 2 domain=y\nd\tO\n",
        "-DOCSTART-\tO\n\na\tO\nb c\tB-X\n-DOCSTART-\tO\nd\tO\n",
    ],
    ids=["blank lines", "windows", "comments", "documents"],
)
def test_tabs_separate_and_words_may_hold_blanks(tmp_path: Path, content: str) -> None:
    found = read(tmp_path / "x.conll", content)
    assert found.words == [("a", "b c"), ("d",)]
    assert found.label_lists == [("O", "B-X"), ("O",)]


def test_a_hash_that_is_a_word_is_one(tmp_path: Path) -> None:
    assert read(tmp_path / "x.conll", "# O\na B-X\n").words == [("#", "a")]


def test_words_alone_are_read_where_no_tags_are_asked_for(tmp_path: Path) -> None:
    for content in ("a\nb\n\nc\n", "a O\nb O\n\nc O\n"):
        found = read(tmp_path / "x.conll", content, UNLABELLED)
        assert found.words == [("a", "b"), ("c",)] and not found.labelled


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a O\nb\n", "x.conll: line 2 has 1 columns, the first has 2"),
        ("a O\nb NN O\n", "x.conll: line 2 has 3 columns, the first has 2"),
        ("a\nb\n", "x.conll: line 1 has a word without a tag"),
        ("a\tO\nb\t\n", "x.conll: line 2 has a word without a tag"),
        ("a\tO\n\tO\n", "x.conll: line 2 has 2 columns, the first has 2"),
        ("\n\n", "x.conll is empty: it has no sentence"),
        ("-DOCSTART- O\n", "x.conll is empty: it has no sentence"),
        ("", "x.conll is empty"),
    ],
)
def test_what_is_no_such_file_is_named_by_its_line(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path / "x.conll", content)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_prose_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2 has 4 columns, the first has 3; a line is to hold a word"):
        read(tmp_path / "notes.txt", "These are notes.\nNothing of them stands in columns.\n"[:40] + "\n")


def test_pairs_of_words_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds words, no pairs of texts"):
        read(tmp_path / "x.conll", SHARED_TASK, Columns(pair="other"))


def test_a_folder_of_parts_is_one_table(tmp_path: Path) -> None:
    for i in (1, 2):
        (tmp_path / f"part-{i}.conll").write_text(f"w{i} O\n")
    (tmp_path / "README.txt").write_text("What this is.\n")
    found = read_examples(tmp_path, Columns())
    assert found.words == [("w1",), ("w2",)]
    assert any("README.txt" in note for note in found.notes)
