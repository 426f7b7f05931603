"""Killed at any point of a run of sums, a service comes back: the same bits, one opening a round, no secret
left."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Make
from tests.faults.points import CoordinatorPoint, WorkerPoint
from tests.faults.secure import THREE, SecureFederation, Summed, secured
from tests.faults.secure_points import (
    SECURE_COORDINATOR_AGAIN,
    SECURE_WORKER_AGAIN,
    SecureCoordinatorPoint,
    SecureWorkerPoint,
)
from tests.faults.test_kills import faults, note_fault, struck
from tests.security.guarded import Certificates

# In `make test` there is none: a run like this takes as long as a whole family of tests.
QUICK: set[str] = set()
# In `make test-all`: on each side before and after what cannot be taken back.
USUAL = {
    "reply-received/OpenShares=kill",
    "transaction-committed/secure-survivors=kill",
    "step/secure-summed=kill",
    "transaction-committed/secure-shares#3=kill",
    "file-renamed/secure-secrets=power",
    "folder-synced/secure-history=kill",
    "folder-synced/masked.safetensors=kill",
    "folder-synced/secure-endorsement=kill",
}


def end(federation: SecureFederation, victim: str, fault: str, note: Callable[[str, object], None]) -> None:
    note_fault(victim, f"sums, {fault}", fault, note)
    federation.faults[victim] = [fault]
    federation.start_all()
    federation.supervise()
    struck(federation, victim)


@pytest.mark.parametrize("fault", faults(SecureCoordinatorPoint, SECURE_COORDINATOR_AGAIN, QUICK, USUAL))
def test_a_killed_coordinator_goes_on_in_the_same_step(
    fault: str, make_secure: Make, sums: Summed, record_property: Callable[[str, object], None]
) -> None:
    federation = make_secure()
    end(federation, "coordinator", fault, record_property)
    assert federation.summed() == sums
    assert federation.left() == []


@pytest.mark.parametrize("fault", faults(SecureWorkerPoint, SECURE_WORKER_AGAIN, QUICK, USUAL))
def test_a_killed_worker_answers_from_its_disk(
    fault: str, make_secure: Make, sums: Summed, record_property: Callable[[str, object], None]
) -> None:
    federation = make_secure()
    end(federation, "worker-1", fault, record_property)
    assert federation.summed() == sums
    assert federation.left() == []


@pytest.mark.parametrize(
    ("victim", "fault"),
    [
        # Each signature by a certificate's key is another: the one that was made is the one that is given.
        pytest.param("worker-1", "folder-synced/secure-endorsement=kill", marks=pytest.mark.slow),
        pytest.param("worker-1", "folder-synced/secure-keys=kill", marks=pytest.mark.faults),
        pytest.param("worker-1", "call-made/EndorseSurvivors=kill", marks=pytest.mark.faults),
        pytest.param("coordinator", "transaction-committed/secure-endorsers=kill", marks=pytest.mark.faults),
    ],
)
def test_signed_keys_and_lists_outlive_their_process(
    victim: str,
    fault: str,
    make_secure: Make,
    sums: Summed,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    certificates = Certificates(tmp_path / "certs")
    settings, extra = secured(certificates, THREE)
    federation = make_secure(settings=settings, extra=extra)
    assert isinstance(federation, SecureFederation)
    end(federation, victim, fault, record_property)
    assert federation.summed() == sums
    assert federation.left() == []


@pytest.mark.faults
def test_one_death_after_the_other_opens_nothing_twice(make_secure: Make, sums: Summed) -> None:
    federation = make_secure()
    assert isinstance(federation, SecureFederation)
    federation.faults = {
        "coordinator": [
            "transaction-made/secure-keys#2=kill",
            "step/secure-sharers=kill",
            "transaction-committed/secure-endorsements=kill",
            "step/secure-summed=kill",
        ],
        "worker-1": [
            "folder-synced/secure-secrets=kill",
            "file-renamed/secure-dealt=power",
            "call-made/OpenShares=kill",
        ],
        "worker-2": ["reply-received/OfferShares=kill", "folder-synced/masked.safetensors=kill"],
    }
    deaths = {name: len(faults) for name, faults in federation.faults.items()}
    federation.start_all()
    federation.supervise()
    assert federation.kills == deaths
    assert federation.summed() == sums
    assert federation.left() == []


@pytest.mark.slow
def test_the_enums_name_every_point_that_only_a_run_of_sums_passes(
    undisturbed_sums: SecureFederation,
) -> None:
    def passed(name: str) -> set[str]:
        return set((undisturbed_sums.folder / f"{name}.trace").read_text().split())

    assert passed("coordinator") - set(CoordinatorPoint) == set(SecureCoordinatorPoint)
    workers = set().union(*map(passed, undisturbed_sums.workers))
    assert workers - set(WorkerPoint) == set(SecureWorkerPoint)


@pytest.mark.slow
def test_nothing_secret_is_left_of_a_run_in_which_nothing_happens(
    undisturbed_sums: SecureFederation, sums: Summed
) -> None:
    assert sums.tries == (1, 1)
    assert undisturbed_sums.left() == []
