"""A seeded fuzzer: valid inputs, changed a little or a lot, each timed; the process's memory watched."""

import random
import resource
import time
from dataclasses import dataclass

from tests.fuzz.targets import Target

_TOKENS = (
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"0", b"-1", b"1e999", b"NaN", b"null", b"true", b"9" * 30,
    b'"x"', b'"dtype"', b'"shape"', b'"data_offsets"', b'"F32"', b'"__metadata__"', b"\\ud800", b"\x00",
    b"\xff", b"\xff" * 8, b"\x7f" * 10, b"[" * 3000, (2**63).to_bytes(8, "little"),
    (2**32).to_bytes(8, "little"),
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """The slowest input and its seconds; bytes by which the process's peak memory grew over all inputs."""

    slowest: bytes
    seconds: float
    memory: int


def mutate(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """One to eight changes: bytes flipped, cut, doubled, replaced by tokens, spliced with another input."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(7):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << draw.randrange(8)
            case 1 if changed:
                changed[at % len(changed)] = draw.randrange(256)
            case 2:
                del changed[at : at + draw.choice((1, 2, 8, 64))]
            case 3:
                changed[at:at] = changed[at : at + draw.choice((1, 8, 64))]
            case 4:
                changed[at:at] = draw.choice(_TOKENS)
            case 5:
                token = draw.choice(_TOKENS)
                changed[at : at + len(token)] = token
            case _:
                changed[at:] = other[draw.randrange(len(other) + 1) :]
    if draw.random() < 0.5 and len(changed) >= 8:
        # Most changes would otherwise be caught by the length alone.
        end = changed.rfind(b"}", 8)
        changed[:8] = max(0, end + 1 - 8).to_bytes(8, "little")
    return bytes(changed)


def fuzz(target: Target, seeds: list[bytes], count: int, seed: int) -> Cost:
    """Run `target` on `count` inputs; whatever it raises passes through, with the input in its notes."""
    draw = random.Random(seed)
    corpus, slowest, seconds = list(seeds), b"", 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        content = corpus[number] if number < len(seeds) else mutate(*_drawn(corpus, draw))
        begun = time.thread_time()
        try:
            target(content)
        except Exception as error:
            error.add_note(f"input {number} of seed {seed}: {content[:400]!r}")
            raise
        taken = time.thread_time() - begun
        if taken > seconds:
            slowest, seconds = content, taken
        if draw.random() < 0.01 and len(content) < 100_000:
            # Changes add up: some inputs go on from earlier ones.
            place = len(seeds) + draw.randrange(512)
            corpus[place : place + 1] = [content]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Cost(slowest, seconds, grown * 1024)


def _drawn(corpus: list[bytes], draw: random.Random) -> tuple[bytes, random.Random, bytes]:
    return draw.choice(corpus), draw, draw.choice(corpus)
