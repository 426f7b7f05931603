"""`fedpft certs`: the certificates by which coordinator, workers and owners know each other."""

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.address import Address
from common.observability.console import plain_errors, run_async
from common.observability.logs import set_up_logging
from common.runtime.signals import taken
from common.trust.authority import AUTHORITY_DAYS, HOLDER_DAYS, REVOKED, Authority
from common.trust.certificates import AUTHORITY, CERTIFICATE, read_certificate
from common.trust.enrolment import INVITATION_HOURS, Candidate, Invitation, Invitations
from common.trust.identity import Identity, Role
from common.trust.signing import peers_line

certs = typer.Typer(
    name="certs",
    no_args_is_help=True,
    help="Make and revoke the certificates by which the two sides know each other.",
)

# Groups of `fedpft certs --help`.
BROUGHT = "Keys and certificates that the owner makes, and revokes"
INVITED = "Keys that their holders make themselves"
COMPARED = "Keys that workers know each other by"

Folder = Annotated[Path, typer.Option("--authority", help="The certificate authority's folder.")]
Days = Annotated[int, typer.Option(min=1, help="Days until the certificate expires.")]


@certs.command(rich_help_panel=BROUGHT)
def init(
    authority: Folder = Path("certs"),
    name: Annotated[str, typer.Option(help="Name of the authority, for people.")] = "FedPFT authority",
    days: Days = AUTHORITY_DAYS,
) -> None:
    """Make a certificate authority. Its key, ca.key, decides who may take part: keep it off the hosts."""
    with plain_errors():
        Authority.create(authority, name, days)
        typer.echo(f"made an authority in {authority}: {AUTHORITY}, ca.key (secret), {REVOKED}")


@certs.command(rich_help_panel=BROUGHT)
def issue(
    role: Annotated[Role, typer.Option(help="coordinator, worker or admin.")],
    name: Annotated[str, typer.Option(help="Name; of a worker, the name in the run.")],
    san: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="DNS name or IP address by which a coordinator is reached."),
    ] = None,
    authority: Folder = Path("certs"),
    out: Annotated[Path | None, typer.Option(help="Folder to write. [default: AUTHORITY/ROLE-NAME]")] = None,
    days: Days = HOLDER_DAYS,
) -> None:
    """Make a key and a certificate: tls.crt, tls.key and ca.crt, in a folder to bring to their holder."""
    with plain_errors():
        identity = Identity(role, name)
        folder = out or authority / f"{role}-{name}"
        issued = Authority(authority).issue(identity, folder, san or (), days)
        typer.echo(f"{folder}: {identity}, serial {issued.serial:x}, until {issued.expires:%Y-%m-%d}")


@certs.command(rich_help_panel=BROUGHT)
def revoke(
    which: Annotated[str, typer.Argument(help="ROLE/NAME for all of its certificates, or a serial number.")],
    authority: Folder = Path("certs"),
) -> None:
    """Revoke certificates. Bring revoked.pem to the coordinator (tls.revoked); no restart is needed."""
    with plain_errors():
        new = Authority(authority).revoke(which)
        for issued in new:
            typer.echo(f"revoked {issued.identity}, serial {issued.serial:x}")
        typer.echo(f"{authority / REVOKED} is for tls.revoked" if new else "revoked already")


@certs.command(name="list", rich_help_panel=BROUGHT)
def list_certificates(authority: Folder = Path("certs")) -> None:
    """Show every certificate that the authority issued."""
    with plain_errors():
        table = Table("holder", "serial", "expires", "state", box=None)
        for issued in Authority(authority).issued():
            state = "revoked" if issued.revoked else "expired" if issued.expired else "valid"
            table.add_row(str(issued.identity), f"{issued.serial:x}", f"{issued.expires:%Y-%m-%d}", state)
        Console(soft_wrap=True).print(table)


@certs.command(rich_help_panel=INVITED)
def invite(
    role: Annotated[Role, typer.Option(help="worker or admin.")],
    name: Annotated[str, typer.Option(help="Name; of a worker, the name in the run.")],
    at: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where `fedpft certs serve` will answer.")],
    authority: Folder = Path("certs"),
    out: Annotated[
        Path | None, typer.Option(help="File to write. [default: AUTHORITY/ROLE-NAME.invitation]")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.01, help="Hours until it is over.")] = INVITATION_HOURS,
    days: Days = HOLDER_DAYS,
) -> None:
    """Invite somebody to get a certificate for a key of their own, once. The file is secret until then."""
    with plain_errors():
        identity = Identity(role, name)
        path = out or authority / f"{role}-{name}.invitation"
        invitations = Invitations(Authority(authority), authority)
        invitations.invite(identity, Address.of_peer(at), hours, days).write(path)
        typer.echo(f"{path}: {identity}, once within {hours:g} hours; its holder runs `fedpft certs enrol`")


@certs.command(rich_help_panel=INVITED)
def serve(
    san: Annotated[
        list[str], typer.Option(metavar="HOST", help="DNS name or IP address that guests reach this host by.")
    ],
    authority: Folder = Path("certs"),
    bind: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen.")] = "0.0.0.0:7075",
) -> None:
    """Answer guests who have an invitation. Runs where the authority's key is, not at the coordinator."""
    from coordinator.federation.enrolment import serve as answer

    set_up_logging("enrolment")

    async def main() -> signal.Signals | None:
        ended: list[signal.Signals] = []
        serving = asyncio.ensure_future(answer(own, Invitations(own, authority), address, tuple(san)))
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            ended.append(number)
            loop.call_soon_threadsafe(serving.cancel)

        with taken(stop), contextlib.suppress(asyncio.CancelledError):
            await serving
        return ended[0] if ended else None

    with plain_errors(logged=True):
        address = Address.parse(bind)
        own = Authority(authority)
    run_async(main())


@certs.command(rich_help_panel=INVITED)
def enrol(
    invitation: Annotated[Path, typer.Argument(help="The file that the run's owner sent.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write. [default: ROLE-NAME]")] = None,
) -> None:
    """Make a key, which stays here, and get its certificate: tls.crt, tls.key and ca.crt."""
    from worker.enrolment import enrol as ask

    with plain_errors():
        invited = Invitation.read(invitation)
        folder = out or Path(f"{invited.identity.role}-{invited.identity.name}")
        certificate = asyncio.run(ask(invited, Candidate(invited, folder)))
        typer.echo(f"{folder}: {invited.identity}, until {certificate.not_valid_after_utc:%Y-%m-%d}")


@certs.command(rich_help_panel=COMPARED)
def fingerprint(
    which: Annotated[
        list[Path],
        typer.Argument(metavar="WORKER...", help="Workers' certificates, or folders with a tls.crt."),
    ],
) -> None:
    """Print workers' lines for a file of peers: the keys that other workers are to take for theirs.

    Bring them to the other workers by a way that the run's owner has no hand in.
    """
    with plain_errors():
        # All or none: of a list that ends early people would take what there is.
        paths = [path / CERTIFICATE if path.is_dir() else path for path in which]
        for line in [peers_line(read_certificate(path)) for path in paths]:
            typer.echo(line)
