"""The fault points that a run of sums passes beyond those of any other, as enums.

A test holds them complete, as it does `points.py`.
"""

from enum import StrEnum

from common.runtime.fault_points import Point
from tests.faults.points import _ANSWERED, _CALLED, _DECIDED, _DURABLE, _members, _names

_CALLS = ("OfferKeys", "OfferShares", "EndorseSurvivors", "OpenShares")
_SETS = tuple(f"secure-{which}" for which in ("roster", "sharers", "survivors", "endorsers", "openers"))
_SAID = tuple(f"secure-{step}" for step in ("keys", "shares", "endorsements", "openings"))
_FILES = ("history", "round", "keys", "secrets", "roster", "dealt", "held", "masked.json", "endorsement")

SecureCoordinatorPoint = StrEnum(
    "SecureCoordinatorPoint",
    _members(
        _names(_DECIDED, ("secure-try", *_SAID, *_SETS, "secure-sum", "secure-forgotten", "artifact-update")),
        _names(_ANSWERED, _CALLS),
        _names([Point.STEP], (*_SETS, "secure-summed")),
    ),
)

SecureWorkerPoint = StrEnum(
    "SecureWorkerPoint",
    _members(
        _names(_DURABLE, (*(f"secure-{name}" for name in _FILES), "masked.safetensors")),
        _names(_CALLED, _CALLS),
        _names([Point.STEP], [f"secure-{step}" for step in ("keys", "shares", "endorsement", "openings")]),
    ),
)

# Where the second time is another state than the first: after other workers have come, in the second round.
SECURE_COORDINATOR_AGAIN = [
    (SecureCoordinatorPoint(name), occurrence)
    for name, occurrence in {
        "transaction-committed/secure-keys": 3,
        "transaction-committed/secure-shares": 3,
        "transaction-made/secure-endorsements": 3,
        "transaction-committed/secure-openings": 3,
        "transaction-committed/secure-survivors": 2,
        "transaction-committed/secure-sum": 2,
        "step/secure-summed": 2,
    }.items()
]
SECURE_WORKER_AGAIN = [
    (SecureWorkerPoint(name), occurrence)
    for name, occurrence in (
        # A worker's history is written when it begins, deals, masks, endorses and opens.
        ("file-renamed/secure-history", 2),
        ("folder-synced/secure-history", 2),
        ("file-written/secure-history", 3),
        ("folder-synced/secure-history", 3),
        ("file-synced/secure-history", 4),
        ("folder-synced/secure-history", 4),
        ("file-renamed/secure-history", 5),
        ("folder-synced/secure-history", 5),
        ("file-renamed/secure-secrets", 2),
        ("reply-received/OpenShares", 2),
    )
]
