"""What coordinator and workers say of a try as secure aggregation comes further: plain records."""

from collections.abc import Mapping
from dataclasses import dataclass

from common.secagg.records import Endorsement, Opening, PublicKeys, ShareOffer


@dataclass(frozen=True)
class Roster:
    """Who brought keys, by name: now shares are due."""

    keys: tuple[PublicKeys, ...]


@dataclass(frozen=True)
class Sharers:
    """Who brought shares beside this worker: what each sealed for it, and the digests of its share of the
    seed and of the key. Updates are due."""

    sealed: Mapping[str, bytes]
    digests: Mapping[str, tuple[bytes, bytes]]


@dataclass(frozen=True)
class Survivors:
    """Whose updates are here, sorted: endorsements are due."""

    workers: tuple[str, ...]


@dataclass(frozen=True)
class Endorsements:
    """Who endorsed the survivors: shares are to be opened."""

    endorsements: tuple[Endorsement, ...]


@dataclass(frozen=True)
class Ended:
    """The try is over, and how, for people: its secrets can go."""

    reason: str


@dataclass(frozen=True)
class SecureNews:
    """News of a try at a round, of this context."""

    round: int
    attempt: int
    context: bytes
    content: Roster | Sharers | Survivors | Endorsements | Ended


@dataclass(frozen=True)
class Said:
    """What a worker brings in one of the steps, for a try at a round of this context."""

    session: str
    round: int
    attempt: int
    context: bytes
    content: PublicKeys | ShareOffer | Endorsement | tuple[Opening, ...]
