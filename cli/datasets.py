"""`fedpft datasets` lists the presets; `fedpft split` deals a data set out to workers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.observability.console import plain_errors

if TYPE_CHECKING:
    from common.data.examples import Columns, Examples


def datasets() -> None:
    """List the data sets that are known by name, to be named instead of a file."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from common.data.presets import PRESETS
    from coordinator.scoring.flowertune import BENCHMARKS

    # Without lines between the columns all of it fits into 80 characters.
    table = Table(box=SIMPLE_HEAD, caption="* the split for tests unless another is named; else it is train")
    for column in ("name", "task, id on the hub", "splits"):
        table.add_column(column, overflow="fold")
    table.add_column("classes", justify="right")
    for preset in PRESETS.values():
        labelled = [split for split in preset.splits if split not in preset.hidden]
        splits = "\n".join(f"{split} *" if split == preset.test else split for split in labelled)
        table.add_row(preset.name, f"{preset.kind}\n{preset.hub_id}", splits, str(len(preset.labels)))
    console = Console()
    console.print(table)
    console.print(f"for `fedpft score` alone, FlowerTune's tasks: {', '.join(BENCHMARKS)}")


def split(
    source: Annotated[
        str,
        typer.Argument(
            help="A table, CoNLL columns, a folder of images, or a preset such as sst2 or mnli:train."
        ),
    ],
    parts: Annotated[int, typer.Option(min=1, help="How many files to write: one for each worker.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write part-1.parquet, … in.")],
    dirichlet: Annotated[
        float | None,
        typer.Option(
            metavar="A",
            help="Concentration of the classes' shares: 100 is nearly even, 0.1 very uneven. "
            "Without it, equal shares by chance.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use this many examples, drawn by chance.")] = None,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder with local copies of presets. [default: ask the hub]")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    pair_column: Annotated[str | None, typer.Option(help="Column of the second text, of pairs.")] = None,
    label_column: Annotated[str, typer.Option(help="Column of the class.")] = "label",
    image_column: Annotated[str, typer.Option(help="Column of the image.")] = "image",
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Read no labels.")] = False,
) -> None:
    """Split a data set into a Parquet file for each worker.

    Its columns are text[, pair] and label, image and label, tokens and tags, messages, or prompt and
    completion.
    """
    with plain_errors():
        import numpy

        from common.data.examples import Columns, write_examples
        from common.errors import DataError
        from common.runtime import seeds
        from experiments.splitting import require_classes, split_indices

        if dirichlet is not None and unlabelled:
            raise DataError("--dirichlet shares out classes; it does not go with --unlabelled")
        if any(out.glob("part-*.parquet")):
            raise DataError(f"{out} holds parts already; remove them, or name another folder")
        columns = Columns(text_column, pair_column, None if unlabelled else label_column, image_column)
        examples = _read(source, columns, data_root)
        for note in examples.notes:
            typer.echo(f"note: {note}", err=True)
        random = numpy.random.default_rng(seeds.derive(seed, "split"))
        if limit is not None:
            if limit > len(examples):
                raise DataError(f"{source} has {len(examples):,} examples, fewer than --limit {limit:,}")
            examples = examples.take(sorted(random.permutation(len(examples))[:limit].tolist()))
        if dirichlet is not None:
            require_classes(examples)
        names = examples.label_names or [""] * len(examples)
        for number, indices in enumerate(split_indices(names, parts, dirichlet, random), start=1):
            path = out / f"part-{number}.parquet"
            write_examples(path, examples.take(indices))
            typer.echo(f"{path}: {len(indices):,} examples")


def _read(source: str, columns: "Columns", root: Path | None) -> "Examples":
    """A path that is there, or else a preset."""
    from common.data.content import opened
    from common.data.examples import read_examples
    from common.data.inspection import inspected
    from common.data.presets import is_preset, load_preset

    path = Path(source)
    with opened(path):
        there = path.exists()
    # What has neither folder nor ending is a preset's name, perhaps misspelt.
    if is_preset(source) or not (there or path.parent.name or path.suffix):
        return inspected(load_preset(source, root, labelled=columns.label is not None))
    return inspected(read_examples(path, columns))
