"""Bytes from the other side: refused or decoded, never a crash, a hang or a growing process.

FEDPFT_FUZZ_INPUTS sets how many inputs each target gets; `make fuzz` gives 200,000.
"""

import os
from pathlib import Path

import pytest

from tests.fuzz.mutation import Cost, fuzz
from tests.fuzz.targets import decode_message, header_seeds, judge_header, message_seeds, opener

INPUTS = int(os.environ.get("FEDPFT_FUZZ_INPUTS", "3000"))
SEED = int(os.environ.get("FEDPFT_FUZZ_SEED", "6"))

pytestmark = pytest.mark.timeout(600 + INPUTS // 100)


def bounded(cost: Cost) -> None:
    assert cost.seconds < 1.0, cost.slowest[:400]
    assert cost.memory < 128 * 2**20


def test_no_header_crashes_hangs_or_swells_its_check() -> None:
    bounded(fuzz(judge_header, header_seeds(), INPUTS, SEED))


def test_no_message_crashes_hangs_or_swells_its_decoder() -> None:
    bounded(fuzz(decode_message, message_seeds(), INPUTS, SEED))


def test_what_passes_the_check_the_library_reads_alike(tmp_path: Path) -> None:
    bounded(fuzz(opener(tmp_path), header_seeds(), INPUTS, SEED))


def test_the_fuzzer_finds_a_planted_crash() -> None:
    """The inputs reach far enough to find what a careless decoder would do."""

    def careless(content: bytes) -> None:
        if b'"shape":[-1' in content or b"NaN" in content:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fuzz(careless, header_seeds(), 3000, SEED)
