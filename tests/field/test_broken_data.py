"""Every broken file and folder, through everything that reads data: one line of ours, never a traceback."""

import io
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pytest
import typer
from click.testing import Result
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from cli.datasets import split
from cli.doctor import doctor
from common.config.file import parse_config, template
from common.data.examples import Columns, read_examples
from common.data.inspection import inspected
from common.errors import DataError
from coordinator.modelling.data import read_source
from experiments.sources import Sizes, deal_out
from experiments.sources import Source as Experiment
from worker.data import PrivateData, Source

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
LABELS = ("x", "y")


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, "PNG")
    return file.getvalue()


def table(**columns: object) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


@dataclass(frozen=True)
class Broken:
    """A name below the test's folder, what lies there, and what is to be said of it."""

    name: str
    says: str
    make: Callable[[Path], object] | bytes
    images: bool = False


def files(**contents: bytes) -> Callable[[Path], object]:
    """A folder; underscores in names are slashes, and the last one the dot of the ending."""

    def make(folder: Path) -> None:
        for name, content in contents.items():
            *folders, stem, ending = name.split("_")
            path = folder.joinpath(*folders, f"{stem}.{ending}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return make


TEXTS = [
    Broken("gone.csv", "gone.csv: no such data file", lambda path: None),
    Broken("file/x.csv", "no such data file", lambda path: path.parent.write_bytes(b"a file, no folder")),
    Broken("n" * 300 + ".csv", "File name too long", lambda path: None),
    Broken("x.csv", "x.csv is empty", b""),
    Broken("x.csv", "it has columns but no rows", b"text,label\n"),
    Broken("x.csv", "it has nothing but blank lines", b"\n\n\n"),
    Broken("x.csv", "line 3 is not UTF-8 (byte 0xe9)", b"text,label\na,x\ncaf\xe9,y\n"),
    Broken("x.csv", "line 1 is not UTF-8 (byte 0xe4)", b"text,l\xe4bel\na,x\n"),
    Broken("x.csv", "is in UTF-16", "text,label\na,x\n".encode("utf-16")),
    Broken("x.csv", "line 3 has a NUL byte", b"text,label\na,x\nb\0,y\n"),
    Broken("x.csv", "line 3 has 3 fields, the header has 2", b"text,label\na,x\nb,c,y\n"),
    Broken("x.csv", "semicolons separate them", b"text;label\na;x\n"),
    Broken("x.csv", "line 3 opens a quotation mark that is never closed", b'text,label\na,x\n"b,y\n'),
    Broken("x.csv", "lines 2 to 3 are one row", b'text,label\n"a,x\nb",y\n'),
    Broken("x.csv", "has no column 'label'; its columns are: text, class", b"text,class\na,x\n"),
    Broken("x.csv", "line 3 has no value in column 'label'", b"text,label\na,x\nb,\n"),
    Broken("x.csv", "has no row with a text", b"text,label\n,x\n,y\n"),
    Broken("x.csv", "is gzip'ed", b"\x1f\x8b\x08\0\0"),
    Broken("x.csv", "is a pointer of Git LFS, not the file itself; run: git lfs pull", LFS),
    Broken("x.csv.gz", "is packed; unpack it to x.csv", b"\x1f\x8b\x08\0\0"),
    Broken("x.xlsx", ".xlsx is not a known kind", b"PK\x03\x04"),
    Broken("x.tsv", "line 2 has 1 field, the header has 2", b"text\tlabel\na x\n"),
    Broken("x.jsonl", "line 2 is not JSON", b'{"text": "a", "label": "x"}\n{"text": "b"\n'),
    Broken(
        "x.jsonl", "line 2 is not UTF-8", b'{"text": "a", "label": "x"}\n{"text": "\xff", "label": "y"}\n'
    ),
    Broken("x.jsonl", "line 2 has no 'label'", b'{"text": "a", "label": "x"}\n{"text": "b"}\n'),
    Broken("x.json", "is not JSON", b'[{"text": "a", "label": "x"}'),
    Broken("x.parquet", "it is no Parquet file", b"text,label\na,x\n"),
    Broken("x.parquet", "its end is missing", table(text=["a"], label=["x"])[:-99]),
    Broken("x.parquet", "it is damaged or incomplete", b"PAR1" + bytes(99) + b"PAR1"),
    Broken("x.parquet", "is a pointer of Git LFS", LFS),
    Broken("x.parquet", "column 'text' holds list", table(text=[["a"]], label=["x"])),
    Broken("x.parquet", "row 2 has no value in column 'label'", table(text=["a", "b"], label=["x", None])),
    Broken("empty", "holds no images; put them in", lambda path: path.mkdir()),
    Broken("notes", "1 file left out, with the ending .txt: a.txt", files(a_txt=b"words")),
    Broken(
        "parts",
        "part2.csv: line 2 has 1 field",
        files(part1_csv=b"text,label\na,x\n", part2_csv=b"text,label\nb\n"),
    ),
    Broken("parts", "may be of several sets", files(test_csv=b"text,label\n", train_csv=b"text,label\n")),
    Broken("pipe.csv", "is no regular file", lambda path: os.mkfifo(path)),
]
IMAGES = [
    Broken("pictures", "cannot be decoded: not an image", files(x_1_png=png(), y_2_png=b"words"), True),
    Broken("pictures", "cannot be decoded: it is empty", files(x_1_png=b""), True),
    Broken("pictures", "is a pointer of Git LFS", files(x_1_png=LFS), True),
    Broken("pictures", "2.png does not lie in a class folder", files(x_1_png=png(), x_a_2_png=png()), True),
    Broken("x.parquet", "row 2 cannot be decoded", table(image=[png(), b"no"], label=["x", "y"]), True),
    Broken(
        "x.parquet",
        "row 1 has no value in column 'image'",
        table(image=[None, png()], label=["x", "y"]),
        True,
    ),
    Broken("x.parquet", "row 1 of column 'image' holds no image", table(image=[[1, 2]], label=["x"]), True),
    Broken(
        "x.parquet", "no such image", table(image=[{"bytes": None, "path": "gone.png"}], label=["x"]), True
    ),
]
# A picture that is cut off has a good header, and is read to its end by training only, and by the doctor.
CUT_OFF = [Broken("pictures", "cannot be decoded: ", files(x_1_png=png()[:-30]), True)]


def each(*broken: Broken) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("broken", broken, ids=lambda b: f"{b.name[:20]}-{b.says[:40]}")


every_one, also_cut_off = each(*TEXTS, *IMAGES), each(*TEXTS, *IMAGES, *CUT_OFF)


@pytest.fixture
def lies(broken: Broken, tmp_path: Path) -> Path:
    path = tmp_path / broken.name
    if isinstance(broken.make, bytes):
        path.write_bytes(broken.make)
    else:
        broken.make(path)
    return path


def command(call: Callable[..., None], *arguments: object) -> Result:
    app = typer.Typer()
    app.command()(call)
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def one_line(caught: pytest.ExceptionInfo[DataError], broken: Broken) -> None:
    assert broken.says in str(caught.value)
    assert "\n" not in str(caught.value)


def settings(broken: Broken, path: Path) -> dict[str, object]:
    kind = "image-classification" if broken.images else "text-classification"
    fine = {"model.path": "none", "task.kind": kind, "task.labels": LABELS, "data.public.preset": "sst2"}
    return fine | {"run.directory": str(path.parent / "run"), "data.test.path": str(path)}


@every_one
def test_the_worker(broken: Broken, lies: Path) -> None:
    with pytest.raises(DataError) as caught:
        PrivateData.read(Source(lies))
    one_line(caught, broken)


@every_one
def test_the_coordinator(broken: Broken, lies: Path) -> None:
    config = parse_config(settings(broken, lies), "a test")
    assert config.data.test is not None
    with pytest.raises(DataError) as caught:
        read_source(config.data.test, config)
    assert "\n" not in str(caught.value)
    # Of some files the task says more than the file would.
    assert broken.says in str(caught.value) or "image-classification needs" in str(caught.value)


@every_one
def test_the_split(broken: Broken, lies: Path, tmp_path: Path) -> None:
    done = command(split, lies, "--parts", 1, "--out", tmp_path / "out")
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    assert broken.says in done.stderr
    assert [line[:7] for line in done.stderr.splitlines()] == ["error: "]


@every_one
def test_an_experiment(broken: Broken, lies: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        deal_out(Experiment(str(lies), columns=Columns()), tmp_path, 1, None, 1, Sizes(1, 1, 1))
    one_line(caught, broken)


@also_cut_off
def test_the_doctor_of_a_worker(broken: Broken, lies: Path, tmp_path: Path) -> None:
    done = command(doctor, "--coordinator", "127.0.0.1:1", "--data", lies, "--folder", tmp_path)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    assert "wrong  private data" in done.stdout and broken.says in done.stdout


@also_cut_off
def test_the_doctor_of_the_owner(broken: Broken, lies: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(template(settings(broken, lies) | {"server.listen": "127.0.0.1:0"}))
    done = command(doctor, "--config", path)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("wrong  test data")]
    assert broken.says in line or "image-classification needs" in line


# Damage by chance, as of disks and transfers.

WHOLE = {
    "x.parquet": table(text=[f"text \u00fc {i}" for i in range(300)], label=["x", "y"] * 150),
    "i.parquet": table(image=[{"bytes": png(), "path": "a.png"}] * 5, label=[1.0] * 5),
    "x.csv": ("text,label\n" + '"a ""b"" \u00fc, c\nmore",x\nplain,y\n' * 30).encode(),
    "x.tsv": ("text\tlabel\n" + '"a" \u00fc, c\tx\n' * 30).encode(),
    "x.jsonl": ('{"text": "a \\u00e4 \u00fc", "label": 1.0}\n' * 30).encode(),
    "x.json": ("[" + '{"text": "a \u00fc", "label": 1}, ' * 30 + '{"text": "b", "label": 0}]').encode(),
}
PICTURES = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "GIF": "gif", "WEBP": "webp", "PPM": "ppm"}


def damaged(content: bytes, draw: random.Random) -> bytes:
    found = bytearray(content)
    how = draw.choice(["altered", "lost", "added", "cut off"])
    for _ in range(draw.choice([1, 1, 2, 20])):
        at = draw.randrange(len(found))
        if how == "altered":
            found[at] = draw.randrange(256)
        elif how == "added":
            found.insert(at, draw.choice(b'",\n\r\t\0\xff {}[]'))
        else:
            del found[at : at + draw.randrange(1, 40) if how == "lost" else len(found)]
        if not found:
            break
    return bytes(found)


@pytest.mark.parametrize("name", [*WHOLE, *PICTURES.values()])
def test_damage_is_read_or_refused_in_one_short_line(name: str, tmp_path: Path) -> None:
    draw = random.Random(name)
    content = WHOLE.get(name)
    if content is None:
        file = io.BytesIO()
        form = next(form for form, ending in PICTURES.items() if ending == name)
        Image.effect_noise((20, 20), 90).convert("RGB").save(file, form)
        content = file.getvalue()
    path = tmp_path / name if name in WHOLE else tmp_path / "pictures" / "cat" / f"1.{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path if name in WHOLE else tmp_path / "pictures"
    for _ in range(40):
        path.write_bytes(damaged(content, draw))
        try:
            examples = inspected(read_examples(source, Columns()), thorough=True)
        except DataError as error:
            told = str(error)
            assert "\n" not in told and len(told.replace(str(tmp_path), "")) < 600
        else:
            assert len(examples) > 0
            for text in examples.texts or ():
                text.encode()
