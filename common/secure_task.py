"""What a run and its tasks say of updates that are summed masked."""

from dataclasses import dataclass

# Of a worker's examples so many may count at most: losses times these, of 128 workers, stay within 64 bits.
MOST_COUNTED = 2**19


@dataclass(frozen=True)
class SecureSpec:
    """That updates are summed masked: fewest workers of a sum, bits of the ring, how workers weigh.

    `signed`: whether keys are signed by the workers' certificates.
    """

    minimum: int
    bits: int
    by_examples: bool
    most_examples: int
    signed: bool


@dataclass(frozen=True)
class SecureTask:
    """Who is asked in a try whose updates are summed masked, and who was in its round's tries so far.

    `clip` is the largest L2 norm of an update; `context` what the coordinator takes all of it to be, as the
    digest by which keys and masks are bound to it.
    """

    drawn: tuple[str, ...]
    electorate: tuple[str, ...]
    colluding: int
    threshold: int
    minimum: int
    clip: float
    context: bytes
