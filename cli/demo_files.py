"""`fedpft demo-files`: the demo's model and data as files, for services that are started by hand."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from common.observability.console import plain_errors


def demo_files(
    owner: Annotated[
        Path, typer.Argument(help="Folder for the coordinator's: model/, public.parquet, test.parquet.")
    ],
    private: Annotated[
        list[Path],
        typer.Argument(help="A folder for each worker, to get its private.parquet alone."),
    ],
    dirichlet: Annotated[
        float, typer.Option(min=0, help="How evenly classes are spread over workers; 0: equally.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 7,
) -> None:
    """Write the demo's files: MiniLM and BBC News, split as `fedpft demo` does. Written folders are kept."""
    with plain_errors():
        from common.storage.files import write_atomically
        from experiments.packaged import packaged_model, write_bbc_news

        done = owner / "written"
        if done.exists():
            typer.echo(f"{owner} is written already")
            return
        owner.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=owner) as folder:
            data = write_bbc_news(Path(folder), len(private), dirichlet or None, seed)
            shutil.copytree(packaged_model(), owner / "model", dirs_exist_ok=True)
            for path in (data.test, data.public):
                path.rename(owner / path.name)
            for path, own in zip(data.workers, private, strict=True):
                own.mkdir(parents=True, exist_ok=True)
                # Another worker's folder is another file system.
                shutil.copyfile(path, own / "private.parquet")
        # Last: an interrupted call is repeated as a whole.
        write_atomically(done, b"")
        for path in (owner, *private):
            typer.echo(str(path))
