"""What binds a round's keys, signatures and masks to what its workers were told; how many must agree."""

import math
import struct
from collections.abc import Sequence
from itertools import combinations

from common.secagg.encoding import hashed, names, number, pack
from common.secagg.records import SecureRound, VectorSpec

VERSION = "FedPFT/secagg/1"


def digest(round: SecureRound) -> bytes:
    """32 bytes that differ as soon as anything in `round` does.

    Workers that were told different things have different contexts, so they refuse each other's signatures
    and share no mask: a coordinator cannot give one of them a model of its own (Pasquini et al. 2022).
    """
    return hashed(
        VERSION,
        round.run_id.encode(),
        round.run_digest,
        round.task_digest,
        number(round.round),
        number(round.attempt),
        names(round.drawn),
        names(round.electorate),
        number(round.colluding),
        number(round.threshold),
        number(round.minimum),
        struct.pack(">d", round.clip),
        struct.pack(">d", round.step),
        number(round.by_examples),
        number(round.most_examples),
        pack(*map(_vector, round.vectors)),
    )


def _vector(spec: VectorSpec) -> bytes:
    return pack(spec.name.encode(), pack(*map(number, spec.shape)), number(spec.bits))


def default_colluding(n: int) -> int:
    """How many of `n` workers may collude: fewer than a third of them (Bonawitz et al. 2017)."""
    return max(0, (n - 1) // 3)


def threshold(n: int, colluding: int, electorate: int | None = None, earlier: Sequence[int] = ()) -> int:
    """The fewest shares that may open a secret of `n` workers; may exceed `n`: then no attempt is possible.

    An honest worker opens one of another's two secrets, one in league both, and the one attacked its own:
    n + c shares. 2t > n + c keeps one of the two closed. `electorate` counts the workers of all attempts
    at the round, this one included, and `earlier` are the thresholds of those before it.
    """
    alone = (n + colluding) // 2 + 1
    among = electorate if electorate is not None else n
    return max([alone, *(among + colluding + 1 - before for before in earlier)])


def electorates_ok(thresholds: Sequence[int], electorate: int, colluding: int) -> bool:
    """Whether at most one of several attempts at a round can be opened.

    `electorate` counts the workers of all of them. An honest worker opens once per round, so two openings
    need t_a + t_b - 2c different honest ones, and there are `electorate` - c: t_a + t_b > electorate + c.
    """
    return all(a + b > electorate + colluding for a, b in combinations(thresholds, 2))


def ring_step(clip: float, bits: int, n: int) -> float:
    """What an integer of the ring stands for, such that n numbers up to ±clip cannot overflow a sum.

    For 64 bits a little room is left: floats have 53 bits, and clip / step must not round up past the ring.
    """
    room = bits - 1 - math.ceil(math.log2(n))
    return clip / (2.0**room - max(1.0, 2.0 ** (room - 50)))
