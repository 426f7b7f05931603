"""One of everything that coordinator and workers tell each other of sums."""

from common.secagg.news import Ended, Endorsements, Roster, Said, SecureNews, Sharers, Survivors
from common.secagg.records import Endorsement, Kind, Opening, PublicKeys, ShareOffer
from common.secure_task import SecureSpec, SecureTask

_CONTEXT = b"c" * 32
KEYS = PublicKeys("w", b"1" * 32, b"2" * 32, b"3" * 32, b"certificate", b"signature")

SPEC = SecureSpec(4, 64, True, 65_536, True)
TASK = SecureTask(("v", "w", "x"), ("v", "w", "x", "y"), 1, 3, 3, 32.0, _CONTEXT)

# In the order of the calls.
SAID = tuple(
    Said("session", 2, 1, _CONTEXT, content)
    for content in (
        KEYS,
        ShareOffer("w", {"v": b"sealed"}, {(h, kind): b"d" * 32 for h in ("v", "w") for kind in Kind}),
        Endorsement("w", b"signature"),
        (Opening("v", Kind.SELF, b"s" * 33), Opening("w", Kind.MASK, b"k" * 33)),
    )
)
NEWS = tuple(
    SecureNews(2, 1, _CONTEXT, content)
    for content in (
        Roster((KEYS,)),
        Sharers({"v": b"sealed"}, {"v": (b"d" * 32, b"e" * 32)}),
        Survivors(("v", "w")),
        Endorsements((Endorsement("v", b"signature"),)),
        Ended("round 2 is summed"),
    )
)
