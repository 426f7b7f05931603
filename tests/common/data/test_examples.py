"""Texts, pairs and images are read as they lie, and what is wrong with them is one line."""

import io
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from common.data.examples import Columns, Examples, join, read_examples, write_examples
from common.errors import DataError
from common.records import TaskKind

TEXT, IMAGE, CAUSAL = TaskKind.TEXT_CLASSIFICATION, TaskKind.IMAGE_CLASSIFICATION, TaskKind.CAUSAL_LM
UNLABELLED = Columns(label=None)


def png(shade: int = 0, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, form)
    return file.getvalue()


def put(path: Path, content: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if content is None else content)
    return path


def table(path: Path, **columns: list[Any]) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


# Tables of texts.


def test_columns_may_have_any_names(tmp_path: Path) -> None:
    path = table(
        tmp_path / "x.parquet", premise=["a", "b"], hypothesis=["c", "d"], gold=[1, 0], image=["", ""]
    )
    examples = read_examples(path, Columns("premise", "hypothesis", "gold"))
    assert (examples.texts, examples.pairs, examples.label_names) == (["a", "b"], ["c", "d"], ["1", "0"])
    assert examples.source == str(path) and len(examples) == 2


def test_without_a_label_column_texts_are_unlabelled(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", text=["a"], label=["x"])
    assert read_examples(path, UNLABELLED).label_names is None


def test_a_language_model_reads_no_labels_though_a_column_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", text=["a"])
    assert read_examples(path, Columns(), CAUSAL).label_names is None
    with pytest.raises(DataError, match="no column 'label'"):
        read_examples(path, Columns(), TEXT)


def test_a_row_without_a_second_text_is_left_out_and_counted(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", text=["a", "b"], pair=["c", None], label=["x", "y"])
    examples = read_examples(path, Columns(pair="pair"))
    assert (examples.texts, examples.pairs, examples.label_names) == (["a"], ["c"], ["x"])
    assert examples.notes == (f"{path}: 1 row of 2 left out, without a text: row 2",)


def test_a_row_without_a_label_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", text=["a", "b", "c"], label=["x", None, " "])
    with pytest.raises(
        DataError, match=r"row 2 has no value in column 'label' \(nor have 1 row more\); fill"
    ):
        read_examples(path, Columns())


def test_a_column_of_bytes_is_not_read_as_text(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", text=[b"a"], label=["x"])
    with pytest.raises(DataError, match="column 'text' holds binary, not text"):
        read_examples(path, Columns())


def test_a_column_that_nobody_asked_for_is_not_read(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", text=["a"], label=["x"], image=[None])
    assert read_examples(path, Columns()).texts == ["a"]


# Folders of images.


def test_folders_are_classes_and_files_come_in_one_order(tmp_path: Path) -> None:
    names = ["dog/b.png", "cat/2.JPG", "cat/1.webp", "cat/10.jpeg", "dog/a.bmp"]
    paths = [put(tmp_path / name) for name in names]
    put(tmp_path / "cat" / "notes.txt", b"not an image by its name")
    put(tmp_path / "cat" / "._1.webp", b"what macOS leaves")
    examples = read_examples(tmp_path, Columns(), IMAGE)
    assert examples.images == sorted(paths)
    assert examples.label_names == ["cat", "cat", "cat", "dog", "dog"]
    assert examples.class_indices(("dog", "cat")) == [1, 1, 1, 0, 0]
    assert examples.texts is None and examples.source == str(tmp_path)


def test_unlabelled_images_may_lie_in_any_depth(tmp_path: Path) -> None:
    paths = [put(tmp_path / name) for name in ["x.png", "a/y.png", "a/b/c/z.png"]]
    examples = read_examples(tmp_path, UNLABELLED)
    assert examples.images == sorted(paths) and examples.label_names is None


@pytest.mark.parametrize("name", ["loose.png", "train/cat/deep.png"])
def test_an_image_outside_of_a_class_folder_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / "cat" / "1.png")
    stray = put(tmp_path / name)
    with pytest.raises(DataError, match=f"{stray} does not lie in a class folder, {tmp_path}/CLASS/"):
        read_examples(tmp_path, Columns())


def test_a_folder_without_images_says_where_to_put_them(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for columns in (Columns(), UNLABELLED):
        with pytest.raises(DataError, match=f"{tmp_path} holds no images; put them in {tmp_path}/CLASS/"):
            read_examples(tmp_path, columns)


def test_no_image_is_opened_before_it_is_used(tmp_path: Path) -> None:
    path = put(tmp_path / "cat" / "1.png", b"not an image")
    assert read_examples(tmp_path, Columns()).images == [path]


# Parquet files of images.


def test_images_are_the_hubs_struct_or_plain_bytes(tmp_path: Path) -> None:
    one, two = png(1), png(2)
    structs = table(
        tmp_path / "s.parquet",
        img=[{"bytes": one, "path": "a.png"}, {"bytes": two, "path": None}],
        fine=[3, 1],
    )
    plain = table(tmp_path / "p.parquet", img=[one, two], fine=[3, 1])
    for path in (structs, plain):
        examples = read_examples(path, Columns(image="img", label="fine"), IMAGE)
        assert examples.images == [one, two]
        assert examples.label_names == ["3", "1"]
        assert examples.name_of(1) == f"{path}: row 2"


def test_a_struct_without_bytes_names_a_file_beside_the_table(tmp_path: Path) -> None:
    rows = [{"bytes": None, "path": "pictures/1.png"}, {"bytes": png(), "path": None}]
    path = table(tmp_path / "x.parquet", image=rows)
    images = read_examples(path, UNLABELLED).images
    assert images is not None and images[0] == tmp_path / "pictures" / "1.png"


def test_more_rows_than_are_read_at_once_keep_their_order(tmp_path: Path) -> None:
    images = [str(i).encode() for i in range(700)]
    path = table(tmp_path / "x.parquet", image=images, label=[str(i) for i in range(700)])
    examples = read_examples(path, Columns())
    assert examples.images == images
    assert examples.label_names == [str(i) for i in range(700)]


def test_with_texts_beside_the_images_the_task_decides(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", text=["a picture"], image=[png()], label=["x"])
    assert read_examples(path, Columns()).texts == ["a picture"]
    assert read_examples(path, Columns(), TEXT).texts == ["a picture"]
    assert read_examples(path, Columns(), IMAGE).images == [png()]


@pytest.mark.parametrize("missing", [None, b"", {"bytes": None, "path": None}, {"bytes": b"", "path": None}])
def test_a_row_without_an_image_is_named(tmp_path: Path, missing: Any) -> None:
    present = {"bytes": png(), "path": None} if isinstance(missing, dict) else png()
    path = table(tmp_path / "x.parquet", image=[present, missing])
    with pytest.raises(DataError, match="row 2 has no value in column 'image'"):
        read_examples(path, UNLABELLED)


@pytest.mark.parametrize(
    "value", ["a.png", 7, {"data": b"x"}, [1, 2]], ids=["name", "number", "struct", "list"]
)
def test_a_column_of_something_else_is_no_image(tmp_path: Path, value: Any) -> None:
    path = table(tmp_path / "x.parquet", image=[value])
    with pytest.raises(DataError, match="row 1 of column 'image' holds no image"):
        read_examples(path, UNLABELLED)


def test_images_without_their_labels_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", image=[png()], klass=["x"])
    with pytest.raises(DataError, match="no column 'label'; its columns are: image, klass"):
        read_examples(path, Columns())


def test_a_table_of_images_without_rows_says_so(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"image": pyarrow.array([], pyarrow.binary())}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="columns but no rows"):
        read_examples(tmp_path / "x.parquet", UNLABELLED)


# What a task needs.


def test_a_task_that_needs_images_says_so_and_what_it_found(tmp_path: Path) -> None:
    texts = table(tmp_path / "x.parquet", text=["a"], label=["x"])
    with pytest.raises(DataError, match=r"needs a column 'image' of images; those of .* are: text, label"):
        read_examples(texts, Columns(), IMAGE)
    (tmp_path / "x.csv").write_text("text,label\na,x\n")
    with pytest.raises(DataError, match=r"image-classification needs images, but .*x\.csv is a file of"):
        read_examples(tmp_path / "x.csv", Columns(), IMAGE)


@pytest.mark.parametrize("kind", [TEXT, CAUSAL])
def test_a_task_that_needs_texts_says_so_and_what_it_found(tmp_path: Path, kind: TaskKind) -> None:
    path = table(tmp_path / "x.parquet", image=[png()], label=["x"])
    put(tmp_path / "folder" / "cat" / "1.png")
    for source in (path, tmp_path / "folder"):
        with pytest.raises(DataError, match=f"{kind} needs texts, but {source} holds images; give a CSV"):
            read_examples(source, Columns(), kind)


def test_a_language_model_refuses_pairs(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", text=["a"], pair=["b"])
    with pytest.raises(DataError, match="causal-lm needs single texts"):
        read_examples(path, Columns(pair="pair"), CAUSAL)


@pytest.mark.parametrize("kind", [None, *TaskKind])
def test_what_is_not_there_or_no_table_says_so_whatever_the_task(
    tmp_path: Path, kind: TaskKind | None
) -> None:
    with pytest.raises(DataError, match=r"gone: no such data file or folder of images"):
        read_examples(tmp_path / "gone", Columns(), kind)
    for name, content in {"empty.parquet": b"", "other.parquet": b"not parquet"}.items():
        put(tmp_path / name, content)
        with pytest.raises(DataError, match=f"{name} (is empty|cannot be read)") as caught:
            read_examples(tmp_path / name, Columns(), kind)
        assert "\n" not in str(caught.value)


# Examples themselves.


def test_an_unknown_class_names_its_row_and_no_labels_say_so() -> None:
    with pytest.raises(DataError, match=r"sst2:train: row 2 has label 'c'; the run knows: a, b"):
        Examples("sst2:train", ["x", "y"], label_names=["a", "c"]).class_indices(("a", "b"))
    with pytest.raises(DataError, match=r"x\.csv has no labels; name the column"):
        Examples("x.csv", ["x"]).class_indices(("a", "b"))


def test_taking_takes_everything_along_and_joining_puts_it_together() -> None:
    examples = Examples("x", ["a", "b", "c"], ["d", "e", "f"], None, ["0", "1", "2"])
    taken = examples.take([2, 0])
    assert (taken.texts, taken.pairs, taken.label_names) == (["c", "a"], ["f", "d"], ["2", "0"])
    assert join("x", [examples.take([0]), examples.take([1, 2])]) == examples
    images = Examples("x", None, images=[b"1", b"2"])
    assert join("y", [images, images.take([1])]) == Examples("y", None, images=[b"1", b"2", b"2"])


def test_examples_that_contradict_themselves_cannot_be_made() -> None:
    for wrong in (
        {"texts": None},
        {"texts": ["a"], "images": [b"x"]},
        {"texts": ["a"], "pairs": []},
        {"texts": ["a"], "label_names": ["x", "y"]},
    ):
        with pytest.raises(ValueError):
            Examples("x", **wrong)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.parquet"
    pairs = Examples(str(path), ["a", "b"], ["c", "d"], None, ["x", "y"])
    write_examples(path, pairs)
    assert read_examples(path, Columns(pair="pair")) == pairs
    file = put(tmp_path / "1.png", png(9))
    write_examples(path, Examples(str(path), None, images=[png(1), file], label_names=["x", "y"]))
    assert parquet.read_schema(path).names == ["image", "label"]
    assert read_examples(path, Columns()).images == [png(1), png(9)]


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    put(tmp_path / "file", b"")
    with pytest.raises(DataError, match="cannot be written"):
        write_examples(tmp_path / "file" / "x.parquet", Examples("x", ["a"]))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "a/../../secret.png"])
def test_a_table_cannot_name_images_outside_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"private")
    rows = [{"image": {"bytes": None, "path": name}, "label": "a"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "table.parquet")
    with pytest.raises(DataError, match="row 1 names an image outside its folder"):
        read_examples(folder / "table.parquet", Columns())
