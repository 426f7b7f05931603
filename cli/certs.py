"""`fedpft certs`: the certificates by which coordinator, workers and owners know each other."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.authority import AUTHORITY_DAYS, HOLDER_DAYS, REVOKED, Authority
from common.certificates import AUTHORITY
from common.console import plain_errors
from common.identity import Identity, Role

certs = typer.Typer(
    no_args_is_help=True, help="Make and revoke the certificates by which the two sides know each other."
)

Folder = Annotated[Path, typer.Option("--authority", help="The certificate authority's folder.")]
Days = Annotated[int, typer.Option(min=1, help="Days until the certificate expires.")]


@certs.command()
def init(
    authority: Folder = Path("certs"),
    name: Annotated[str, typer.Option(help="Name of the authority, for people.")] = "FedPFT authority",
    days: Days = AUTHORITY_DAYS,
) -> None:
    """Make a certificate authority. Its key, ca.key, decides who may take part: keep it off the hosts."""
    with plain_errors():
        Authority.create(authority, name, days)
        typer.echo(f"made an authority in {authority}: {AUTHORITY}, ca.key (secret), {REVOKED}")


@certs.command()
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


@certs.command()
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


@certs.command(name="list")
def list_certificates(authority: Folder = Path("certs")) -> None:
    """Show every certificate that the authority issued."""
    with plain_errors():
        table = Table("holder", "serial", "expires", "state", box=None)
        for issued in Authority(authority).issued():
            state = "revoked" if issued.revoked else "expired" if issued.expired else "valid"
            table.add_row(str(issued.identity), f"{issued.serial:x}", f"{issued.expires:%Y-%m-%d}", state)
        Console(soft_wrap=True).print(table)
