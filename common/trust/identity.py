"""Who somebody is: role and name, as a certificate's URI tells them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from common.errors import CertificateError

_SCHEME = "fedpft://"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_NAME = re.compile(NAME)


class Role(StrEnum):
    """What a certificate's holder is to a run."""

    COORDINATOR = "coordinator"
    WORKER = "worker"
    ADMIN = "admin"


@dataclass(frozen=True, order=True)
class Identity:
    """Role and name. The name follows the rule for workers' names. Raises CertificateError."""

    role: Role
    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise CertificateError(
                f"name {self.name[:64]!r} must be 1 to 64 letters, digits, '.', '_' or '-', "
                "the first a letter or digit"
            )

    @property
    def uri(self) -> str:
        """What stands in the certificate: fedpft://ROLE/NAME."""
        return f"{_SCHEME}{self.role}/{self.name}"

    def __str__(self) -> str:
        return f"{self.role}/{self.name}"

    @classmethod
    def from_uris(cls, uris: Iterable[str]) -> "Identity":
        """The one identity among a certificate's URIs.

        Two would leave it open who calls, so they are refused like none. Raises CertificateError.
        """
        ours = [uri for uri in uris if uri.startswith(_SCHEME)]
        if len(ours) != 1:
            raise CertificateError(f"a certificate must hold one URI fedpft://ROLE/NAME, got {len(ours)}")
        return cls.parse(ours[0].removeprefix(_SCHEME))

    @classmethod
    def parse(cls, text: str) -> "Identity":
        """ROLE/NAME. Raises CertificateError."""
        role, slash, name = text.partition("/")
        if not slash or role not in list(Role):
            raise CertificateError(f"{text[:80]!r} must be ROLE/NAME, the role one of {', '.join(Role)}")
        return cls(Role(role), name)
