"""The demo's certificates: of an authority, the coordinator, each worker and the owner."""

from pathlib import Path
from typing import Any

from common.trust.authority import Authority
from common.trust.certificates import AUTHORITY, CERTIFICATE, KEY
from common.trust.identity import Identity, Role
from common.trust.tls import Tls, TlsFiles


def certificates(folder: Path, workers: int) -> dict[str, Any]:
    """Issue them below `folder`, as `fedpft certs` does, unless they are there; settings of run.toml."""
    coordinator = folder / "coordinator"
    if not (coordinator / CERTIFICATE).exists():
        authority = Authority.create(folder / "authority", "FedPFT demo")
        authority.issue(Identity(Role.COORDINATOR, "demo"), coordinator)
        for number in range(1, workers + 1):
            authority.issue(Identity(Role.WORKER, f"worker-{number}"), folder / f"worker-{number}")
        authority.issue(Identity(Role.ADMIN, "owner"), folder / "owner")
    return {
        "tls.certificate": str((coordinator / CERTIFICATE).resolve()),
        "tls.key": str((coordinator / KEY).resolve()),
        "tls.ca": str((coordinator / AUTHORITY).resolve()),
    }


def owner(folder: Path) -> Tls:
    """The owner's end of TLS."""
    return Tls(TlsFiles.in_folder(folder / "owner"), Role.ADMIN)
