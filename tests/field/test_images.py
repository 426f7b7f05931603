"""Pictures as people have them: none vanishes without a word, none turns black, doubt is refused."""

import io
import os
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from common.data.examples import Columns, Examples, read_examples
from common.data.images import decode
from common.data.inspection import inspect_images
from common.errors import DataError


def picture(form: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (4, 3), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form, **options)
    return file.getvalue()


def of_values(values: Any, kind: Any, form: str = "TIFF", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(numpy.array(values, kind)).save(file, form, **options)
    return file.getvalue()


def put(path: Path, content: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture() if content is None else content)
    return path


def shades(content: bytes) -> list[int]:
    found = numpy.asarray(decode(content, "x"))
    assert (found == found[:, :, :1]).all()
    shade: list[int] = found[0, :, 0].tolist()
    return shade


# Files that vanish.


def test_a_rare_class_of_tiffs_is_there(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / "common" / f"{i}.png")
    put(tmp_path / "rare" / "1.png")
    for name in ("2.tif", "3.TIF", "4.tiff"):
        put(tmp_path / "rare" / name, picture("TIFF"))
    examples = read_examples(tmp_path, Columns())
    assert examples.label_names == ["common"] * 4 + ["rare"] * 4
    assert examples.notes == ()


@pytest.mark.parametrize(
    ("ending", "form"),
    [
        (".PNG", "PNG"),
        (".JPG", "JPEG"),
        (".jfif", "JPEG"),
        (".gif", "GIF"),
        (".ppm", "PPM"),
        (".pgm", "PPM"),
        (".jp2", "JPEG2000"),
        (".avif", "AVIF"),
        (".bmp", "BMP"),
        (".webp", "WEBP"),
        (".jpg", "MPO"),
    ],
)
def test_a_picture_of_any_usual_kind_is_read(tmp_path: Path, ending: str, form: str) -> None:
    path = put(tmp_path / "cat" / f"x{ending}", picture(form))
    examples = read_examples(tmp_path, Columns())
    assert examples.images == [path] and examples.notes == ()
    assert decode(path, "x").size == (4, 3)
    assert inspect_images(examples, thorough=True) == ()


def test_what_is_left_out_is_counted_by_reason_and_named(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "1.png")
    for name in ("1.dcm", "2.DCM", "3.dcm", "4.dcm"):
        put(tmp_path / "rare" / name, b"DICM")
    for name in (
        "cat/notes.txt",
        "cat/.DS_Store",
        "cat/._1.png",
        "README",
        "__MACOSX/cat/1.png",
        ".git/x.png",
    ):
        put(tmp_path / name, b"x")
    put(tmp_path / "labels.csv", b"x")
    (tmp_path / "empty").mkdir()
    examples = read_examples(tmp_path, Columns())
    assert examples.label_names == ["cat"]
    assert examples.notes == (
        f"{tmp_path}: 4 files left out, hidden by name: .git, __MACOSX, cat/.DS_Store and 1 more",
        f"{tmp_path}: 4 files left out, with the ending .dcm: rare/1.dcm, rare/2.DCM, rare/3.dcm and 1 more",
        f"{tmp_path}: 1 file left out, a table beside images: labels.csv",
        f"{tmp_path}: 1 file left out, with the ending .txt: cat/notes.txt",
        f"{tmp_path}: 1 file left out, without an ending: README",
        f"{tmp_path}: 2 folders without an image, so no class: empty, rare",
    )


def test_a_folder_of_other_files_says_what_they_are(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "1.dcm", b"DICM")
    with pytest.raises(
        DataError, match=r"holds no images; put them in .*; 1 file left out, with the ending .dcm"
    ):
        read_examples(tmp_path, Columns())


def test_a_class_that_is_a_link_to_a_folder_is_read_and_a_circle_is_not(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "1.png")
    put(tmp_path / "data" / "cat" / "1.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")
    examples = read_examples(tmp_path / "data", Columns())
    assert examples.label_names == ["cat", "dog"]
    assert examples.notes == (
        f"{tmp_path}/data: 1 file left out, a link to a folder that is read already: cat/up",
    )


def test_a_link_to_a_picture_that_is_gone_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"cat/2\.png is a link to a file that is not there"):
        read_examples(tmp_path, Columns())


def test_a_class_folder_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "cat" / "1.png")
    put(tmp_path / "dog" / "1.png")
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="dog cannot be read: Permission denied"):
        read_examples(tmp_path, Columns())


def test_class_folders_that_differ_in_case_are_told(tmp_path: Path) -> None:
    put(tmp_path / "Cat" / "1.png")
    put(tmp_path / "cat" / "1.png")
    assert read_examples(tmp_path, Columns()).notes == (
        f"{tmp_path}: labels that differ in blanks or case only, each a class of its own: 'Cat' and 'cat'",
    )


# Pixels of more than 8 bits.


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (of_values([[0, 51 * 257, 65535]], numpy.uint16, "PNG"), [0, 51, 255]),
        (of_values([[0, 51 * 257, 65535]], numpy.uint16), [0, 51, 255]),
        (of_values([[0.0, 0.2, 1.0]], numpy.float32), [0, 51, 255]),
        (of_values([[0.0, 51.0, 255.0]], numpy.float32), [0, 51, 255]),
        (of_values([[0.0, 51 * 257.0, 65535.0]], numpy.float32), [0, 51, 255]),
        (of_values([[0, 51, 255]], numpy.int32), [0, 51, 255]),
        (of_values([[0, 51 * 257, 65535]], numpy.int32), [0, 51, 255]),
    ],
    ids=["16 bits PNG", "16 bits TIFF", "to 1", "to 255", "to 65535", "32 bits to 255", "32 bits to 65535"],
)
def test_values_are_scaled_and_not_cut_off(tmp_path: Path, content: bytes, expected: list[int]) -> None:
    assert shades(content) == expected
    parquet.write_table(pyarrow.table({"image": [content]}), tmp_path / "x.parquet")
    (image,) = read_examples(tmp_path / "x.parquet", Columns(label=None)).images or ()
    assert isinstance(image, bytes) and shades(image) == expected


@pytest.mark.parametrize(
    ("values", "kind", "told"),
    [
        (
            [[-1000.0, 3000.0]],
            numpy.float32,
            "has values from -1,000.0 to 3,000.0, a range that no image is known by",
        ),
        ([[-1, 5]], numpy.int32, "has values from -1 to 5"),
        ([[0, 2**30]], numpy.int32, "has values from 0 to 1,073,741,824"),
        ([[0.0, float("nan")]], numpy.float32, "has pixels that are no finite numbers"),
        ([[0.0, float("inf")]], numpy.float32, "has pixels that are no finite numbers"),
    ],
)
def test_values_of_no_known_range_are_refused(values: Any, kind: Any, told: str) -> None:
    with pytest.raises(DataError) as caught:
        decode(of_values(values, kind), "ct.tif")
    assert str(caught.value).startswith(f"ct.tif {told}")
    assert str(caught.value).endswith("; convert it to 8 bits a pixel, with the range that you mean")


def test_what_was_scaled_and_what_is_almost_black_is_told(tmp_path: Path) -> None:
    put(tmp_path / "ct" / "1.png", of_values([[0, 4095]], numpy.uint16, "PNG"))
    put(tmp_path / "ct" / "2.tif", of_values([[0.0, 1.0]], numpy.float32))
    put(tmp_path / "ct" / "3.tif", of_values([[0.0, 200.0]], numpy.float32))
    put(tmp_path / "ct" / "4.png")
    assert inspect_images(read_examples(tmp_path, Columns())) == (
        f"{tmp_path}: 1 image almost black, as their values are far below the most that their bits hold: "
        f"{tmp_path}/ct/1.png",
        f"{tmp_path}: 3 images of more than 8 bits, scaled: "
        "1 from 0 to 1, 1 from 0 to 255, 1 from 0 to 65,535",
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_that_a_file_can_have_becomes_rgb(mode: str) -> None:
    for form in ("PNG", "TIFF"):
        try:
            content = picture(form, mode)
        except (OSError, KeyError):
            continue
        assert decode(content, "x").mode == "RGB"


# Files that are not what they seem.


def test_pages_and_frames_beyond_the_first_are_counted(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 3), shade) for shade in (10, 20, 30)]
    for name, form in {"1.tif": "TIFF", "2.gif": "GIF", "3.webp": "WEBP"}.items():
        file = io.BytesIO()
        frames[0].save(file, form, save_all=True, append_images=frames[1:])
        put(tmp_path / "ct" / name, file.getvalue())
    put(tmp_path / "ct" / "4.png")
    (note,) = inspect_images(read_examples(tmp_path, Columns()))
    assert note.startswith(f"{tmp_path}: 3 images of several pages or frames, of which the first is taken: ")
    assert shades((tmp_path / "ct" / "1.tif").read_bytes())[0] == 10


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be decoded: it is empty; replace or remove it"),
        (b"words", "cannot be decoded: not an image"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "it is a pointer of Git LFS, not the file itself; run: git",
        ),
        (b"<!DOCTYPE html>", "it is a web page"),
        (b"II*\0" + b"\xff" * 30, "cannot be decoded: "),
    ],
)
def test_a_file_that_is_no_picture_is_told_before_training_with_their_number(
    tmp_path: Path, content: bytes, told: str
) -> None:
    put(tmp_path / "cat" / "1.png")
    for i in (2, 3, 4):
        put(tmp_path / "cat" / f"{i}.png", content)
    with pytest.raises(DataError) as caught:
        inspect_images(read_examples(tmp_path, Columns()))
    assert str(caught.value).startswith(f"{tmp_path}/cat/2.png")
    assert told in str(caught.value)
    assert str(caught.value).endswith(" (and 2 more images that cannot be used)")


def test_half_of_a_picture_is_told_by_whoever_decodes_all(tmp_path: Path) -> None:
    noise = Image.effect_noise((99, 99), 90)
    for form, ending in {"JPEG": ".jpg", "PNG": ".png"}.items():
        file = io.BytesIO()
        noise.save(file, form)
        put(tmp_path / form / f"x{ending}", file.getvalue()[: file.tell() // 2])
        with pytest.raises(DataError, match=f"x{ending} cannot be decoded: .*truncated"):
            inspect_images(read_examples(tmp_path / form, Columns(label=None)), thorough=True)


def test_a_picture_of_a_table_is_named_by_its_row() -> None:
    images = Examples("x.parquet", None, images=[picture(), b"words"])
    with pytest.raises(DataError, match=r"x\.parquet: row 2 cannot be decoded"):
        inspect_images(images)


def test_broken_notes_of_a_camera_do_no_harm(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    broken = picture("JPEG", exif=exif.tobytes()[:-4])
    odd = picture("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    for content in (broken, odd):
        assert decode(content, "x").mode == "RGB"


def test_a_name_that_is_not_utf8_is_refused_in_letters_that_any_log_holds(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "1.png")
    (tmp_path / "cat").rename(tmp_path / os.fsdecode(b"caf\xe9"))
    for path in (tmp_path, tmp_path / os.fsdecode(b"caf\xe9") / "1.png"):
        with pytest.raises(DataError, match=r"the name '.*caf\\udce9.*' is not UTF-8; rename it") as caught:
            read_examples(path, Columns())
        assert str(caught.value).isascii()


def test_many_pictures_of_16_bits_do_not_hold_up_a_start(tmp_path: Path) -> None:
    content = of_values([[0, 65535]], numpy.uint16, "PNG")
    examples = Examples("x.parquet", None, images=[content] * 100)
    scaled = "images of more than 8 bits, scaled: "
    assert inspect_images(examples) == (f"x.parquet: at least 64 {scaled}64 from 0 to 65,535",)
    assert inspect_images(examples, thorough=True) == (f"x.parquet: 100 {scaled}100 from 0 to 65,535",)
