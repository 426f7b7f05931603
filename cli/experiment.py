"""`fedpft experiment`: the paper's comparisons, one command each."""

import os
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import ConfigError
from common.observability.console import plain_errors
from common.records import TaskKind
from experiments.catalogue import ATTACKS, EXPERIMENTS

if TYPE_CHECKING:
    from experiments.ray_clients import RayClients


class Engine(StrEnum):
    """Where clients are trained."""

    LOCAL = "local"
    RAY = "ray"


def experiment(
    name: Annotated[str, typer.Argument(help="One of " + ", ".join([*EXPERIMENTS, ATTACKS]) + ".")],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A smaller form: 10 minutes on 2 cores (compare: 25)."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Foundation model: a directory or a hub id. [default: the packaged MiniLM]"),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="tweets, bbc-news or fashion-mnist; a preset such as sst2 (fedpft datasets lists them); or "
            "a table or image folder of your own."
        ),
    ] = "tweets",
    clients: Annotated[int | None, typer.Option(min=1, help="Simulated clients. [default: 100]")] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Clients drawn for a round. [default: a tenth]")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Federated rounds.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of every variant, with seeds 1, 2, …")
    ] = None,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of these seeds.")] = 1,
    splits: Annotated[
        list[str] | None,
        typer.Option("--split", help="iid or dirichlet-A, how classes are spread; may be given again."),
    ] = None,
    variants: Annotated[
        list[str] | None, typer.Option("--only", help="Only this variant; may be given again.")
    ] = None,
    train: Annotated[int | None, typer.Option(min=1, help="Private examples over all clients.")] = None,
    test: Annotated[int | None, typer.Option(min=1, help="Examples to score on.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of run.toml, for every variant."),
    ] = None,
    task: Annotated[
        TaskKind | None,
        typer.Option(help="Of a file of your own, such as text-regression. [default: by its form]"),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="tune: trials of every method.")] = None,
    tuned: Annotated[
        str | None,
        typer.Option(
            help="Folder of `fedpft experiment tune` whose findings to use, or none: default settings. "
            "[default: the catalogue's, of packaged model and data]"
        ),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="Where clients are trained: in this machine's processes, or by Ray.")
    ] = Engine.LOCAL,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, such as auto. [default: start one here]")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time. [default: one for every core]")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a run; part of its result.")] = 1,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder with local copies of presets. [default: ask the hub]")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the text, in a file of your own.")] = "text",
    pair_column: Annotated[str | None, typer.Option(help="Column of the second text, of pairs.")] = None,
    label_column: Annotated[str, typer.Option(help="Column of the class.")] = "label",
    folder: Annotated[
        Path | None, typer.Option(help="Folder for the results. [default: runs/experiments/NAME[-quick]]")
    ] = None,
    keep_runs: Annotated[
        bool, typer.Option("--keep-runs", help="Keep every run's directory, not only its figures.")
    ] = False,
) -> None:
    """Run one of the paper's experiments in simulation, and write a report of it.

    Every client is trained by the worker's own code, everything else done by the coordinator's: a run
    gives the same bits as one of real services. Interrupted, the same command goes on; what is done is
    not done again.
    """
    with plain_errors():
        if name not in (*EXPERIMENTS, ATTACKS):
            there = ", ".join([*EXPERIMENTS, ATTACKS])
            raise ConfigError(f"there is no experiment {name!r}; there are: {there}")
        from experiments.report.files import require_packages, write_document

        # Before the runs, not after them.
        require_packages()
        from rich.console import Console

        from common.config.file import parse_settings
        from common.data.examples import Columns
        from experiments.experiment import Wanted, conduct
        from experiments.packaged import packaged_model
        from experiments.pretraining import packaged_vit
        from experiments.report.of_experiment import document
        from experiments.report.terminal import show
        from experiments.sources import Source
        from experiments.tuned import settings_of

        console, source = (
            Console(),
            Source(data, data_root, Columns(text_column, pair_column, label_column), task),
        )
        default = Path("runs") / "experiments" / (f"{name}-quick" if quick else name)
        settled = parse_settings(settings or [])
        at_once = parallel or max(1, (os.cpu_count() or 1) // threads)
        if name == ATTACKS:
            from cli.attacks import attack
            from experiments.attacks.scale import AttackSetup, scaled

            unused = {
                "--sample": sample,
                "--split": splits,
                "--only": variants,
                "--trials": trials,
                "--tuned": tuned,
                "--keep-runs": keep_runs,
                "--engine": engine is not Engine.LOCAL,
            }
            if odd := [option for option, value in unused.items() if value]:
                raise ConfigError(f"{name} takes no {odd[0]}: it compares what is seen, not variants")
            size = scaled(
                quick, first_seed, seeds=seeds, clients=clients, rounds=rounds, train=train, test=test
            )
            data_sets = () if data == "tweets" else (source, source)
            at = model or str(packaged_model())
            attack(AttackSetup(folder or default, at, size, settled, threads, *data_sets), at_once, console)
            return
        chosen = EXPERIMENTS[name]
        known = [v.name for v in chosen.variants]
        if unknown := [v for v in variants or () if v not in known]:
            raise ConfigError(f"{name} has no variant {unknown[0]!r}; it has: {', '.join(known)}")
        scale = chosen.scale(quick)
        given: dict[str, Any] = {
            "clients": clients,
            "sample": sample or (max(1, clients // 10) if clients else None),
            "rounds": rounds,
            "seeds": seeds,
            "first_seed": first_seed,
            "splits": tuple(splits) if splits else None,
            "train": train,
            "test": test,
            "score_every": min(scale.score_every, rounds) if rounds else None,
            "trials": trials if chosen.is_search else None,
        }
        scale = replace(scale, **{key: value for key, value in given.items() if value is not None})
        if scale.sample > scale.clients:
            raise ConfigError(f"--sample {scale.sample} is more than there are clients: {scale.clients}")
        wanted = Wanted(
            experiment=chosen,
            quick=quick,
            folder=folder or default,
            model=model or str(packaged_vit(console) if data == "fashion-mnist" else packaged_model()),
            source=source,
            scale=scale,
            variants=tuple(v for v in known if v in (variants or chosen.chosen(quick))),
            settings=settled,
            parallel=at_once,
            threads=threads,
            engine=engine,
            keep_runs=keep_runs,
            tuned={} if chosen.is_search else settings_of(tuned, data, packaged=model is None),
        )
        console.print(f"[bold]{name}[/]: {chosen.question}")

        def on_cluster() -> "RayClients":
            from experiments import ray_clients

            return ray_clients.RayClients(ray_address, threads, parallel)

        conduct(wanted, console, on_cluster if engine is Engine.RAY else None)
        report = document(wanted.folder)
        page = write_document(wanted.folder / "report", report)
        show(report, console)
        console.print(f"report: {page}")
