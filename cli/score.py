"""`fedpft score`: what a model comes to on files and benchmarks, in a table or as JSON."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.observability.console import plain_errors

if TYPE_CHECKING:
    import torch

    from coordinator.scoring.figures import Figure, Scores
    from coordinator.scoring.scoring import Progress

# Figures that are counts.
_WHOLE = ("tokens",)
_BYTES_DOWN, _BYTES_UP = "to_workers", "from_workers"


def score(
    model: Annotated[
        str, typer.Argument(help="Folder of a model: an export, merged or as an adapter, or any other.")
    ],
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Files to score it on; data sets of `fedpft datasets`; FlowerTune's tasks mmlu-stem, "
            "mmlu-social-sciences, mmlu-humanities, pubmedqa, medmcqa, medqa, fpb, fiqa and tfns, or its "
            "groups general-nlp, medical and finance.",
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(help="An adapter's foundation model. [default: where the adapter says]"),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="The directory of the run that made it: its bytes beside the scores.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Score the first so many examples of each file, or MMLU subject. [default: all]"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 8,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Tokens of a text at most. [default: the model's positions; of answers and texts 1,024, of "
            "texts to classify 512 at most]",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a generated answer. [default: 128; in benchmarks, their own]"),
    ] = None,
    no_generation: Annotated[
        bool, typer.Option("--no-generation", help="Generate nothing: likelihoods and tokens only.")
    ] = False,
    template: Annotated[
        str,
        typer.Option(
            metavar="auto|on|off",
            help="What goes through the model's chat template. auto: messages; on: texts, too, as a user's "
            "message.",
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help='Torch device, such as "cpu" or "cuda:0".')] = "cpu",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="Of the weights: float32, bfloat16, float16; auto: float32 on a CPU, else the model's own.",
        ),
    ] = "auto",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder with local copies of data sets. [default: ask the hub]")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    pair_column: Annotated[str | None, typer.Option(help="Column of the second text, of pairs.")] = None,
    label_column: Annotated[str, typer.Option(help="Column of the class.")] = "label",
    image_column: Annotated[str, typer.Option(help="Column of the image.")] = "image",
    answers: Annotated[
        Path | None, typer.Option(help="File to write what was generated to, as JSON Lines.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Score a model: multiple choice by likelihood, answers by generation, texts, classes.

    What a file asks is told by its columns: question, choices and answer; prompt and completion; messages;
    text; for a classifier, text and label, or as its task has them.
    """
    with plain_errors():
        from common.data.examples import Columns
        from common.errors import ConfigError
        from coordinator.scoring.loading import Held, load_subject
        from coordinator.scoring.scoring import (
            Place,
            Settings,
            Template,
            expanded,
            group_means,
            require_known,
            score_source,
        )

        if template not in list(Template):
            raise ConfigError(f"--template must be {', '.join(Template)}, got {template}")
        if dtype not in list(Held):
            raise ConfigError(f"--dtype must be {', '.join(Held)}, got {dtype}")
        sources = expanded(files)
        for source in sources:
            require_known(source)
        sent = None if run is None else _bytes_of(run)
        settings = Settings(
            batch_size, limit, max_length, max_new_tokens, Template(template), not no_generation
        )
        place = Place(data_root, Columns(text_column, pair_column, label_column, image_column))
        subject = load_subject(model, base, _device(device), Held(dtype))
        with _notes_below(), _progress() as progress:
            scores = [score_source(subject, source, place, settings, progress) for source in sources]
        means = group_means(scores, files)
        if answers is not None:
            _write_answers(answers, scores)
        if as_json:
            typer.echo(json.dumps(_told(model, scores, means, sent), indent=2))
        else:
            _show(scores, means, sent)


def _device(name: str) -> "torch.device":
    import torch

    from common.errors import ConfigError
    from common.runtime.compute import device_problem

    if (problem := device_problem(name)) is not None:
        raise ConfigError(f"--device {name} cannot be used: {problem}")
    return torch.device(name)


def _bytes_of(run: Path) -> dict[str, int]:
    """Of all workers and rounds together, each way. Raises StoreError where there is no run."""
    from coordinator.campaign.status import open_run

    store, _ = open_run(run)
    try:
        counts = [each for own in store.traffic.in_all().values() for each in own]
    finally:
        store.close()
    return {
        _BYTES_DOWN: sum(each.bytes_down for each in counts),
        _BYTES_UP: sum(each.bytes_up for each in counts),
    }


def _write_answers(path: Path, scores: "Sequence[Scores]") -> None:
    from dataclasses import asdict

    from common.storage.files import write_atomically

    rows = [{"source": each.source} | asdict(answer) for each in scores for answer in each.answers]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomically(path, "".join(lines).encode(errors="replace"))


@contextmanager
def _notes_below() -> Iterator[None]:
    """Of conversations, what was cut or left out stands below the table, and not in a log before it."""
    import logging

    logger = logging.getLogger("common.data.chat_encoding")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _progress() -> "Iterator[Progress]":
    """A bar on standard error for each piece of work, gone at the end; none where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def begin(what: str) -> Any:
            bar = bars.add_task(what, total=None)
            return lambda done, whole: bars.update(bar, completed=done, total=whole)

        yield begin


def _told(
    model: str,
    scores: "Sequence[Scores]",
    means: "dict[str, dict[str, Figure]]",
    sent: dict[str, int] | None,
) -> dict[str, Any]:
    """All of it, for JSON, which has no number that is none."""
    found: dict[str, Any] = {
        "model": model,
        "scores": [
            {
                "source": each.source,
                "form": each.form,
                "examples": each.examples,
                "figures": {name: _json(figure) for name, figure in each.figures.items()},
                "notes": list(each.notes),
            }
            | ({} if each.parts is None else {"parts": dict(each.parts)})
            for each in scores
        ],
    }
    if means:
        found["means"] = {
            group: {name: _json(figure) for name, figure in figures.items()}
            for group, figures in means.items()
        }
    if sent is not None:
        found["bytes"] = sent
    return found


def _json(figure: "Figure") -> dict[str, float | None]:
    return {
        "value": figure.value if math.isfinite(figure.value) else None,
        "stderr": figure.error if math.isfinite(figure.error) else None,
    }


def _show(
    scores: "Sequence[Scores]", means: "dict[str, dict[str, Figure]]", sent: dict[str, int] | None
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from coordinator.owner.status_view import megabytes

    table = Table(box=SIMPLE_HEAD)
    table.add_column("scored on", overflow="fold")
    table.add_column("examples", justify="right")
    table.add_column("figure", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    names = [Path(each.source).name for each in scores]
    for name, each in zip(names, scores, strict=True):
        head = (name if names.count(name) == 1 else each.source, f"{each.examples:,}")
        _rows(table, head, each.figures)
    for group, figures in means.items():
        _rows(table, (f"mean of {group}", ""), figures)
    console = Console()
    console.print(table)
    for note in (note for each in scores for note in each.notes):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if sent is not None:
        down, up = sent[_BYTES_DOWN], sent[_BYTES_UP]
        told = f"{megabytes(down)} to workers, {megabytes(up)} from them, {megabytes(down + up)} in all"
        console.print(f"bytes of the run: {told}", highlight=False, soft_wrap=True)


def _rows(table: Any, head: tuple[str, str], figures: "Mapping[str, Figure]") -> None:
    """What is of one class alone is in JSON only."""
    shown = [(name, figure) for name, figure in figures.items() if ":" not in name]
    for number, (name, figure) in enumerate(shown):
        value = f"{figure.value:,.0f}" if name in _WHOLE else f"{figure.value:.4f}"
        error = f"{figure.error:.4f}" if math.isfinite(figure.error) else ""
        table.add_row(*(head if number == 0 else ("", "")), name.replace("_", " "), value, error)
