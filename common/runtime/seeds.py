"""Seeds for every random choice, derived from the run's seed and what the choice is for."""

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2**63) that depends on all arguments and on nothing else."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
