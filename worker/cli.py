"""`fedpft worker` and `fedpft-worker`."""

import math
import socket
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError, DataError
from common.observability.console import plain_errors, run_async
from common.observability.logs import LogFormat
from common.private_task import DpUnit
from worker.commands import Beside, default_folder, history, policy

app = typer.Typer(name="worker", cls=Beside, add_completion=False, invoke_without_command=True)
app.command()(history)
app.command()(policy)


@app.callback()
def worker(
    ctx: typer.Context,
    coordinator: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of the coordinator.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Private data: CSV, TSV, JSONL or Parquet, or a folder of images. It never leaves here."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:SPLIT]", help="Instead of --data, a data set that `fedpft datasets` lists."
        ),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder with local copies of presets. [default: ask the hub]")
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            help="A file like --data to score the sub-FM on, and not to train on. Sums alone leave."
        ),
    ] = None,
    validation_share: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0, max=1, help="Keep this share of the private data aside for that instead."
        ),
    ] = 0.0,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name in the run, the same after a restart. [default: the certificate's, else the host's]"
        ),
    ] = None,
    tls: Annotated[
        Path | None,
        typer.Option(
            envvar="FEDPFT_TLS",
            help="Folder with tls.crt, tls.key and ca.crt, as `fedpft certs issue --role worker` writes it. "
            "[default: plain text]",
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    pair_column: Annotated[
        str | None, typer.Option(help="Column that holds the second text of pairs.")
    ] = None,
    image_column: Annotated[str, typer.Option(help="Column that holds the image.")] = "image",
    label_column: Annotated[
        str, typer.Option(help='Column that holds the label; "" for none, as for language modelling.')
    ] = "label",
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder for downloads and the update under way. [default: ~/.cache/fedpft/NAME]"),
    ] = None,
    join_timeout: Annotated[
        float,
        typer.Option(min=0, help="Give up after so many seconds without an answer."),
    ] = 300.0,
    keepalive: Annotated[
        float,
        typer.Option(min=1, help="Probe a connection that is silent for so many seconds."),
    ] = 20.0,
    max_download: Annotated[
        float,
        typer.Option(metavar="GB", min=0, help="Refuse a run whose files take more than this."),
    ] = 20.0,
    keep_classes: Annotated[
        bool,
        typer.Option(
            "--keep-classes",
            help="Tell no run names and numbers of the classes: join none that asks.",
        ),
    ] = False,
    require_secure: Annotated[
        bool,
        typer.Option(
            "--require-secure",
            help="Take part only in runs that sum masked updates, so that nobody sees this worker's.",
        ),
    ] = False,
    min_aggregate: Annotated[
        int, typer.Option(metavar="N", min=3, help="Open no sum of fewer workers than these.")
    ] = 3,
    peers: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with the fingerprints of the other workers' keys, as `fedpft certs fingerprint` "
            "prints them: share masks with no others, whatever the authority issues. Implies "
            "--require-secure."
        ),
    ] = None,
    require_dp: Annotated[
        DpUnit,
        typer.Option(
            help='"example": take part only in runs under which, by noise that this worker adds, nobody can '
            'tell whether any one example is among its data. "worker": only in runs whose results do not '
            "tell whether this worker took part; with --require-secure it adds its noise itself."
        ),
    ] = DpUnit.NONE,
    epsilon: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="The most that all runs on these data together may tell of an example, or of this worker as "
            "a whole, whichever they promise; then it leaves. "
            "Runs without differential privacy are refused.",
        ),
    ] = None,
    policy_file: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            help="TOML file of what the owner of the data allows, as `fedpft worker policy` writes it: a run "
            "that does not fit is declined, before anything is fetched.",
        ),
    ] = None,
    stay: Annotated[
        bool,
        typer.Option(
            "--stay",
            help="Take part in run after run: wait for the next one, and for a coordinator that is away; "
            "read data and policy anew when they have changed.",
        ),
    ] = False,
    forget_opening: Annotated[
        bool,
        typer.Option(
            "--forget-opening",
            help="After the run's owner has gone back to an earlier round: take part in it anew, though its "
            "sum was opened.",
        ),
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve Prometheus metrics; port 0 takes a free one."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow plain text to and from other machines.")
    ] = False,
    device: Annotated[str, typer.Option(help='Torch device, such as "cpu" or "cuda:0".')] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of torch. [default: all cores]")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    log_format: Annotated[
        LogFormat | None,
        typer.Option("--log", help="How lines look. [default: human on a terminal, else JSON]"),
    ] = None,
) -> None:
    """Join a run and fine-tune its sub-FM on private data, until the run is over; with --stay, run after run.

    A signal ends it in order; with --stay, also while it waits.
    """
    if ctx.invoked_subcommand is not None:
        return
    from common.address import Address, require_loopback
    from common.data.presets import find_preset
    from common.observability.logs import set_up_logging
    from common.transport.wire import worker_name
    from common.trust.identity import Role
    from common.trust.signing import peers_file
    from common.trust.tls import open_tls

    if (data is None) == (preset is None):
        raise typer.BadParameter("give exactly one of --data and --preset")
    if validation is not None and validation_share:
        raise typer.BadParameter("give one of --validation and --validation-share")
    set_up_logging("worker", verbose=verbose, worker=name or "", form=log_format)
    with plain_errors(logged=True):
        address = Address.of_peer(coordinator)
        serving = Address.parse(metrics) if metrics else None
        opened = open_tls(tls, Role.WORKER)
        if not insecure:
            for plain in (address if opened is None else None, serving):
                if plain is not None:
                    require_loopback(plain, insecure)
        if name is None and opened is not None:
            name = opened.identity.name
        name = worker_name(name or socket.gethostname().partition(".")[0])
        folder = folder or default_folder(name)
        if preset is not None:
            find_preset(preset)
        elif data is not None and not data.exists():
            raise DataError(f"{data}: no such data file or folder")
        if epsilon is not None and not 0 < epsilon < math.inf:
            raise ConfigError(f"--epsilon must be > 0, got {epsilon:g}")
        if peers is not None and opened is None:
            raise ConfigError("--peers names keys of certificates: give --tls, too")
        pins = None if peers is None else peers_file(peers)
        if validation is not None and not validation.exists():
            raise DataError(f"{validation}: no such data file or folder")
    set_up_logging("worker", verbose=verbose, worker=name, form=log_format)

    # torch takes seconds to import; --help and a mistake in an option should not.
    from common.data.examples import Columns
    from worker.data import Source
    from worker.privacy_policy import PrivacyPolicy
    from worker.process import SecureOptions, WorkerOptions, work

    columns = Columns(text_column, pair_column, label_column or None, image_column)
    run_async(
        work(
            WorkerOptions(
                coordinator=coordinator,
                data=Source(data, columns, preset, data_root, validation, validation_share),
                name=name,
                folder=folder,
                join_timeout=join_timeout,
                metrics=metrics,
                insecure=insecure,
                device=device,
                threads=threads,
                keepalive=keepalive,
                max_download=int(max_download * 1e9),
                tells_classes=not keep_classes,
                tls=opened,
                privacy=PrivacyPolicy(require_dp, epsilon),
                policy=policy_file,
                stay=stay,
                secure=SecureOptions(require_secure, min_aggregate, pins, forget_opening),
            )
        )
    )


def main() -> None:
    """Entry point of `fedpft-worker`."""
    app()
