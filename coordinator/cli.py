"""`fedpft coordinator` (also `fedpft-coordinator`), and what comes before it: init and build."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.observability.console import plain_errors, run_async
from common.observability.logs import LogFormat

app = typer.Typer(add_completion=False)


@app.command()
def coordinator(
    config: Annotated[Path, typer.Option(help="The run's configuration, such as run.toml.")],
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow plain text to and from other machines.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="End the run where the sub-FM is found to be no stand-in for the FM."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    log_format: Annotated[
        LogFormat | None,
        typer.Option("--log", help="How lines look. [default: human on a terminal, else JSON]"),
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Try at once, although the last three tries failed in the same way."),
    ] = False,
) -> None:
    """Run the coordinator: build the sub-FM, serve workers, end with a tuned foundation model.

    Started again with the same configuration, it goes on where the run was.
    """
    from common.observability.logs import set_up_logging

    set_up_logging("coordinator", verbose=verbose, form=log_format)
    with plain_errors(logged=True):
        from common.config.file import load_config

        loaded = load_config(config)
        if insecure:
            server = loaded.server.model_copy(update={"insecure": True})
            loaded = loaded.model_copy(update={"server": server})
        if strict:
            loaded = loaded.model_copy(update={"run": loaded.run.model_copy(update={"strict": True})})
        # torch takes seconds to import; --help and a mistake in the file should not.
        from coordinator.process import serve

    # A supervisor starts it for ever; a person at a terminal knows why.
    async def main() -> signal.Signals | None:
        return (await serve(loaded, again or sys.stdin.isatty())).by

    run_async(main())


def init(
    out: Annotated[Path, typer.Argument(help="File to write.")] = Path("run.toml"),
    model: Annotated[str | None, typer.Option(help="Foundation model: a directory or a hub id.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Class names, separated by commas, in order of class index; ask: those that workers have."
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="text-classification, text-multi-label, text-regression, token-classification, "
            "image-classification or causal-lm."
        ),
    ] = "text-classification",
    preset: Annotated[
        str | None,
        typer.Option(help="Take task, classes and test data from one of the data sets of `fedpft datasets`."),
    ] = None,
    public: Annotated[Path | None, typer.Option(help="Public, unlabelled data for the alignment.")] = None,
    test: Annotated[Path | None, typer.Option(help="The owner's labelled test data.")] = None,
    tls: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the coordinator's tls.crt, tls.key and ca.crt: mutual TLS, and privacy.secure, "
            "so that the coordinator gets sums of masked updates alone."
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="Differential privacy of each example, and settings that learn under it: the head alone.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a run.toml with every key, its default and what it does."""
    with plain_errors():
        from common.config.file import template
        from common.config.task import ASK
        from common.errors import ConfigError
        from common.records import TaskKind
        from common.storage.files import write_atomically
        from common.task_forms import FORMS, Answer

        if out.exists() and not force:
            raise ConfigError(f"{out} is there already; --force overwrites it")
        if task not in list(TaskKind):
            raise ConfigError(f"--task must be one of {', '.join(TaskKind)}, got {task!r}")
        form = FORMS[TaskKind(task)]
        if labels is not None and (preset is not None or not form.named):
            raise ConfigError(f"--labels does not go with {'--preset' if preset else f'--task {task}'}")
        if test is not None and preset is not None:
            raise ConfigError("--test does not go with --preset, which brings its own test data")
        values: dict[str, object] = {
            "model.path": model or "path/to/model",
            "data.public.path": _beside(out, public) or "public.jsonl",
        }
        asked = labels is not None and _classes(labels) == ASK
        if asked and (tls is not None or epsilon is not None):
            option = "--epsilon" if tls is None else "--tls"
            raise ConfigError(f"--labels ask does not go with {option}: workers' classes come as they are")
        if tls is not None:
            values |= _with_tls(out, tls)
        if epsilon is not None:
            if form.answer is Answer.NEXT_TOKEN:
                raise ConfigError(
                    f"--epsilon does not go with --task {task}, which has no head to tune alone"
                )
            values |= _private(epsilon)
        if preset is not None:
            from common.data.presets import find_preset

            known, split = find_preset(preset, test=True)
            values |= {"task.kind": str(known.kind), "task.labels": known.labels}
            values["task.pairs"] = known.columns.pair is not None
            values["data.test.preset"] = f"{known.name}:{split}"
        else:
            usual = ("O", "B-PER", "I-PER") if form.answer is Answer.TAGS else ("negative", "positive")
            classes = usual if labels is None else _classes(labels)
            values |= {"task.kind": task, "task.labels": classes if form.named else ()}
            if classes == ASK:
                values["task.labels"] = ASK[0]
            usual_files = {Answer.TAGS: "test.conll", Answer.NEXT_TOKEN: "test.jsonl"}
            values["data.test.path"] = _beside(out, test) or usual_files.get(form.answer, "test.csv")
        write_atomically(out, template(values).encode())
        typer.echo(f"wrote {out}; edit it, then: fedpft coordinator --config {out}")


def _classes(labels: str) -> tuple[str, ...]:
    """Names between commas, with or without blanks beside them. Raises ConfigError."""
    from common.config.task import ASK
    from common.errors import ConfigError

    names = tuple(name.strip() for name in labels.split(","))
    if names == ASK:
        return names
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise ConfigError(f"--labels must name at least 2 classes, all different, got {labels!r}")
    return names


def _with_tls(out: Path, folder: Path) -> dict[str, object]:
    """Mutual TLS, and with it sums of masked updates alone. Raises CertificateError."""
    from common.config.method import RoundsSection
    from common.trust.identity import Role
    from common.trust.tls import TlsFiles, open_tls

    open_tls(folder, Role.COORDINATOR)
    files = TlsFiles.in_folder(folder)
    named = {"certificate": files.certificate, "key": files.key, "ca": files.authority}
    values: dict[str, object] = {f"tls.{key}": _beside(out, path) for key, path in named.items()}
    # Nobody may drop out of a sum of three.
    return values | {"privacy.secure": True, "rounds.minimum": max(3, RoundsSection().workers)}


def _private(epsilon: float) -> dict[str, object]:
    """Differential privacy, with what learns under it: docs/experiments.md has the figures. Raises
    ConfigError."""
    from common.errors import ConfigError

    if not 0 < epsilon <= 100:
        raise ConfigError(f"--epsilon must be > 0 and <= 100, got {epsilon:g}")
    return {
        "privacy.dp.unit": "example",
        "privacy.dp.epsilon": epsilon,
        "privacy.dp.batch_size": 512,
        "adapter.targets": "none",
        "training.optimizer": "sgd",
        "training.epochs": 40,
        "training.batch_size": 64,
        "training.head_learning_rate": 3.0,
        "training.weight_decay": 0.0,
    }


def _beside(config: Path, data: Path | None) -> str | None:
    """A path as it is to stand in the configuration, which counts from its own folder."""
    if data is None or data.is_absolute() or config.parent == Path():
        return None if data is None else str(data)
    return os.path.relpath(data, config.parent)


def build(
    model: Annotated[str, typer.Option(help="Foundation model: a directory or a hub id.")],
    corpus: Annotated[
        str,
        typer.Option(
            help="Public, unlabelled data: CSV, TSV, JSONL, Parquet, a folder of images, or a preset."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; a run takes it as sub_fm.path.")],
    drop_ratio: Annotated[float, typer.Option(help="Share of FFN neurons cut.")] = 0.75,
    steps: Annotated[int, typer.Option(help="Optimiser steps of the alignment.")] = 200,
    max_length: Annotated[int, typer.Option(help="Longer texts are cut to this many tokens.")] = 128,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    image_column: Annotated[str, typer.Option(help="Column that holds the image.")] = "image",
    seed: Annotated[
        int, typer.Option(min=0, help="Fixes every random choice; the run's gives the run's bits.")
    ] = 7,
    processes: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Share both models out to N processes of this host, each on a GPU, if any.",
        ),
    ] = 1,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any key of run.toml, such as sub_fm.saliency=activation."
        ),
    ] = None,
) -> None:
    """Cut and align a sub-FM ahead of a run, on one CPU or many GPUs.

    Broken off, the same command goes on.
    """
    with plain_errors():
        from common.config.file import parse_config, parse_settings
        from common.config.task import ASK
        from common.data.presets import is_preset
        from common.errors import ConfigError
        from common.records import TaskKind
        from common.task_forms import FORMS

        given = {
            "model.path": model,
            "task.max_length": max_length,
            "data.public.preset" if is_preset(corpus) else "data.public.path": corpus,
            "data.public.text_column": text_column,
            "data.public.image_column": image_column,
            "sub_fm.drop_ratio": drop_ratio,
            "alignment.steps": steps,
            "run.seed": seed,
        } | parse_settings(settings or [])
        kind = str(given.get("task.kind", TaskKind.TEXT_CLASSIFICATION))
        named = kind not in list(TaskKind) or FORMS[TaskKind(kind)].named
        if named and given.get("task.labels", ASK[0]) == ASK[0]:
            # The head is the run's matter; a build holds layers only.
            given["task.labels"] = ("0", "1")
        loaded = parse_config(given, "fedpft build")
        if not loaded.aligns_layers:
            raise ConfigError("--steps must be >= 1 unless alignment.method says otherwise")
        if processes > 1:
            from coordinator.modelling.ranks import build_together

            build_together(loaded, out, processes)
            return
        from coordinator.modelling.prebuild import build_ahead

        build_ahead(loaded, out)


def main() -> None:
    """Entry point of `fedpft-coordinator`."""
    app()
