"""What a worker does once only in a round, across attempts and its own restarts.

Each function gives the next history, to be on disk before the deed; the same deed again is the same history.
Whatever could open two sums with one vector in both raises SecureRefused.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from common.errors import SecureRefused
from common.secagg.context import digest, electorates_ok
from common.secagg.encoding import framed, names, number, pack, to_names, to_number, unframed, unpack
from common.secagg.records import PublicKeys, SecureRound
from common.secagg.statements import names_digest, roster_digest

_HISTORY = "history"


@dataclass(frozen=True)
class History:
    """A worker's part in the attempts at a round, the last of them `attempt` with `context`.

    `electorate` has all workers that it knows to have been drawn, `thresholds` those of its attempts.
    Digests, empty until then: of the roster that it dealt shares to; of the sharers that it masked its
    vectors for; of the survivors that it endorsed; of those that it opened shares for.
    """

    run_id: str
    round: int
    attempt: int
    context: bytes
    colluding: int
    thresholds: tuple[int, ...]
    electorate: tuple[str, ...]
    dealt: bytes = b""
    masked: bytes = b""
    endorsed: bytes = b""
    opened: bytes = b""

    def to_bytes(self) -> bytes:
        """As a file's content, for the worker's own disk."""
        numbers = self.round, self.attempt, self.colluding
        done = self.dealt, self.masked, self.endorsed, self.opened
        thresholds = pack(*map(number, self.thresholds))
        told = self.run_id.encode(), self.context, thresholds, names(self.electorate)
        return framed(_HISTORY, *map(number, numbers), *told, *done)

    @classmethod
    def from_bytes(cls, data: bytes) -> "History":
        """What `to_bytes` gave. Raises SecureRefused."""
        parts = unframed(_HISTORY, data, 11)
        round, attempt, colluding = map(to_number, parts[:3])
        run_id, context, thresholds, electorate, *done = parts[3:]
        limits = tuple(map(to_number, unpack(thresholds)))
        return cls(run_id.decode(), round, attempt, context, colluding, limits, to_names(electorate), *done)


def begin(before: History | None, round: SecureRound) -> History:
    """Take part in an attempt: the first that this worker hears of, one further, or the same again.

    A new attempt is with new secrets: the caller makes them, and deletes the old ones first.
    """
    context = digest(round)
    if before is None or (before.run_id == round.run_id and before.round < round.round):
        return History(
            round.run_id,
            round.round,
            round.attempt,
            context,
            round.colluding,
            (round.threshold,),
            round.electorate,
        )
    at = f"round {round.round}, attempt {round.attempt}"
    if before.run_id != round.run_id:
        raise SecureRefused(f"{at}: this worker's secrets are of run {before.run_id!r}, not {round.run_id!r}")
    if (before.round, before.attempt) == (round.round, round.attempt):
        if before.context != context:
            raise SecureRefused(f"{at}: the coordinator tells it otherwise than before")
        return before
    if (before.round, before.attempt) > (round.round, round.attempt):
        raise SecureRefused(f"{at}: this worker has taken part in a later one")
    if before.opened:
        raise SecureRefused(f"{at}: this worker has opened shares of an earlier attempt at the round")
    if missing := sorted(set(before.electorate) - set(round.electorate)):
        raise SecureRefused(
            f"{at}: {', '.join(missing)} was drawn for an earlier attempt, which it leaves out"
        )
    colluding, among = max(before.colluding, round.colluding), len(round.electorate)
    if not all(electorates_ok((old, round.threshold), among, colluding) for old in before.thresholds):
        raise SecureRefused(
            f"{at}: with threshold {round.threshold} among {among} workers, two sums could be opened"
        )
    return replace(
        before,
        attempt=round.attempt,
        context=context,
        colluding=colluding,
        thresholds=(*before.thresholds, round.threshold),
        electorate=round.electorate,
        dealt=b"",
        masked=b"",
        endorsed=b"",
    )


def dealing(before: History, roster: Sequence[PublicKeys]) -> History:
    """Deal shares to this roster, and to no other."""
    return replace(before, dealt=_once(before.dealt, roster_digest(roster), "another roster"))


def masking(before: History, sharers: Collection[str]) -> History:
    """Mask the round's vectors for these sharers, and for no others: two differ by what is plain."""
    if not before.dealt:
        raise SecureRefused("there is nothing to mask for: this worker has dealt no shares")
    return replace(before, masked=_once(before.masked, names_digest(sharers), "other sharers"))


def endorsing(before: History, sharers: Collection[str], survivors: Collection[str]) -> History:
    """Sign these lists, and no others in this attempt."""
    if before.masked != names_digest(sharers):
        raise SecureRefused("this worker's vectors were not masked for these sharers")
    return replace(before, endorsed=_once(before.endorsed, names_digest(survivors), "other survivors"))


def opening(before: History, sharers: Collection[str], survivors: Collection[str]) -> History:
    """Open shares for these lists, which this worker endorses with it; once per round, whatever follows."""
    endorsed = endorsing(before, sharers, survivors)
    return replace(endorsed, opened=_once(before.opened, endorsed.endorsed, "other survivors"))


def _once(before: bytes, now: bytes, what: str) -> bytes:
    if before not in (b"", now):
        raise SecureRefused(f"{what} than before in the same attempt: this worker does it once only")
    return now
