"""A disk that is full or failing while a sum is made: one line that says so, and the same sum once it is
mended."""

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

import pytest

from tests.faults.conftest import Make
from tests.faults.secure import SecureFederation, Summed
from tests.faults.test_disk import end_of, says_what_to_do

pytestmark = pytest.mark.faults


class CoordinatorDiskFault(StrEnum):
    """Where the coordinator's disk fails, and ends it."""

    TRY_FULL = "transaction-made/secure-try=enospc"
    SURVIVORS_FULL = "transaction-made/secure-survivors=enospc"
    SUM_BROKEN = "transaction-made/secure-sum=eio"
    FORGETTING_FULL = "transaction-made/secure-forgotten=enospc"


class SayingDiskFault(StrEnum):
    """The same while workers bring something: the coordinator stays, and they bring it again."""

    KEYS_FULL = "transaction-made/secure-keys=enospc"
    ROSTER_FULL = "transaction-made/secure-roster=enospc"
    SHARES_BROKEN = "transaction-made/secure-shares#3=eio"
    SHARERS_FULL = "transaction-made/secure-sharers=enospc"
    ENDORSERS_BROKEN = "transaction-made/secure-endorsers=eio"
    OPENINGS_FULL = "transaction-made/secure-openings#2=enospc"
    OPENERS_FULL = "transaction-made/secure-openers=enospc"


class WorkerDiskFault(StrEnum):
    """Where a worker's disk fails, and ends it."""

    SECRETS_FULL = "file-written/secure-secrets=enospc"
    DEALT_FULL = "file-written/secure-dealt=enospc"
    MASKED_BROKEN = "file-written/masked.safetensors=eio"
    OPENING_FULL = "file-written/secure-history#5=enospc"


def note_disk(fault: str, whose: str, note: Callable[[str, object], None]) -> None:
    note("fault", f"{whose} disk, sums: {fault.partition('=')[2]}")
    note("point", str(fault))


def same(federation: SecureFederation, sums: Summed) -> None:
    """But for how often a round was tried: who left for its disk is missed at once."""
    ended = federation.summed()
    assert ended == replace(sums, tries=ended.tries)
    assert federation.left() == []


@pytest.mark.parametrize("fault", CoordinatorDiskFault)
def test_a_coordinators_disk_fails_and_the_sum_goes_on_once_it_is_mended(
    fault: str, make_secure: Make, sums: Summed, record_property: Callable[[str, object], None]
) -> None:
    note_disk(fault, "coordinator", record_property)
    federation = make_secure(faults={"coordinator": [fault]})
    assert isinstance(federation, SecureFederation)
    federation.start_all()
    assert says_what_to_do(end_of(federation, "coordinator", 2), fault)
    federation.start("coordinator")
    federation.supervise()
    same(federation, sums)


@pytest.mark.parametrize("fault", SayingDiskFault)
def test_what_the_disk_does_not_take_is_brought_again(
    fault: str, make_secure: Make, sums: Summed, record_property: Callable[[str, object], None]
) -> None:
    note_disk(fault, "coordinator", record_property)
    federation = make_secure(faults={"coordinator": [fault]})
    assert isinstance(federation, SecureFederation)
    federation.start_all()
    federation.supervise()
    same(federation, sums)
    told = [line for n in federation.workers for line in federation.log(n).splitlines() if "next try" in line]
    assert any(says_what_to_do(line, fault) for line in told)


@pytest.mark.parametrize("fault", WorkerDiskFault)
def test_a_workers_disk_fails_and_it_comes_back_once_it_is_mended(
    fault: str, make_secure: Make, sums: Summed, record_property: Callable[[str, object], None]
) -> None:
    note_disk(fault, "worker-1", record_property)
    federation = make_secure(faults={"worker-1": [fault]}, settings={"rounds.grace_seconds": 3.0})
    assert isinstance(federation, SecureFederation)
    federation.start_all()
    assert says_what_to_do(end_of(federation, "worker-1", 2), fault)
    federation.start("worker-1")
    federation.supervise()
    same(federation, sums)
