"""A disk that is full, read-only or failing: one line that says so, and the run goes on once it is mended."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import pytest

from tests.faults.conftest import Make
from tests.faults.federation import Federation, Outcome

# In `make test`, too.
USUAL = {"file-written/adapter=enospc", "transaction-made/update=eio"}


class CoordinatorDiskFault(StrEnum):
    """Where the coordinator's disk fails, and how."""

    SUB_FM_FULL = "file-written/sub_model=enospc"
    PLAN_READ_ONLY = "file-written/plan=erofs"
    CHECKPOINT_FULL = "file-written/alignment-checkpoint.safetensors=enospc"
    ADAPTER_FULL = "file-written/adapter=enospc"
    ADAPTER_BROKEN = "file-written/adapter#2=eio"
    STATE_FULL = "file-written/server_state=enospc"
    PATCH_BROKEN = "file-written/neuron_patch=eio"
    TRY_FULL = "transaction-made/try-opened=enospc"
    CLOSING_BROKEN = "transaction-made/try-closed=eio"
    ADAPTER_NOT_NAMED = "transaction-made/adapter#2=enospc"
    ALIGNMENT_NOT_NAMED = "transaction-made/alignment=enospc"
    SCORES_FULL = "transaction-made/evaluation=enospc"
    COLLECTION_READ_ONLY = "transaction-made/collection=erofs"
    END_FULL = "transaction-made/outcome=enospc"


class ReceivingDiskFault(StrEnum):
    """The same while an update comes in: the coordinator stays, and the worker tries again."""

    CHUNK_FULL = "chunk-received/upload#2=enospc"
    UPLOAD_BROKEN = "file-written/upload=eio"
    UPDATE_BROKEN = "file-written/update=eio"
    UPDATE_NOT_NAMED = "transaction-made/update=eio"


class WorkerDiskFault(StrEnum):
    """Where a worker's disk fails, and how."""

    DOWNLOAD_FULL = "chunk-received/sub_model#2=enospc"
    DOWNLOAD_BROKEN = "file-written/adapter=eio"
    PROCESSOR_READ_ONLY = "file-written/tokenizer.json=erofs"
    UPDATE_FULL = "file-written/update=enospc"
    ABOUT_FULL = "file-written/update-header#2=enospc"


def cases(faults: type[StrEnum]) -> list[object]:
    return [pytest.param(f, marks=() if f in USUAL else pytest.mark.faults, id=str(f)) for f in faults]


def says_what_to_do(line: str, fault: str) -> bool:
    """Whether an error's line names problem and remedy."""
    name = fault.partition("=")[2].upper()
    remedies = {"ENOSPC": "free space", "EROFS": "writable", "EIO": "check the disk"}
    told = os.strerror(getattr(errno, name))
    return told in line and remedies[name] in line


def end_of(federation: Federation, name: str, code: int) -> str:
    """Wait for a process's end with this code; its last line. There must be no traceback."""
    assert federation.ended(name) == code, federation.logs()
    assert "Traceback" not in federation.log(name)
    return federation.log(name).strip().splitlines()[-1]


@pytest.mark.parametrize("fault", cases(CoordinatorDiskFault))
def test_a_coordinators_disk_fails_and_the_run_goes_on_once_it_is_mended(
    fault: CoordinatorDiskFault,
    make: Make,
    reference: Outcome,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", f"coordinator disk: {fault.partition('=')[2]}")
    record_property("point", str(fault))
    federation = make(faults={"coordinator": [fault]})
    federation.start_all()
    assert says_what_to_do(end_of(federation, "coordinator", 2), fault)
    federation.start("coordinator")
    # The workers have waited.
    federation.supervise()
    assert federation.outcome() == reference


@pytest.mark.parametrize("fault", cases(ReceivingDiskFault))
def test_an_update_that_the_disk_does_not_take_comes_again(
    fault: ReceivingDiskFault, make: Make, reference: Outcome, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", f"coordinator disk: {fault.partition('=')[2]}")
    record_property("point", str(fault))
    federation = make(faults={"coordinator": [fault]})
    federation.start_all()
    federation.supervise()
    assert federation.outcome() == reference
    with federation.store() as store:
        refused = [e.text for e in store.events.all() if e.kind == "update_refused"]
    assert len(refused) == 1
    assert says_what_to_do(refused[0], fault)


@pytest.mark.parametrize("fault", cases(WorkerDiskFault))
def test_a_workers_disk_fails_and_it_comes_back_once_it_is_mended(
    fault: WorkerDiskFault, make: Make, reference: Outcome, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", f"worker-1 disk: {fault.partition('=')[2]}")
    record_property("point", str(fault))
    federation = make(faults={"worker-1": [fault]})
    federation.start_all()
    assert says_what_to_do(end_of(federation, "worker-1", 2), fault)
    federation.start("worker-1")
    federation.supervise()
    outcome = federation.outcome()
    # Who says goodbye is not waited for: if the other one has scored before it is back, the round has no
    # score at the workers. Nothing else may differ.
    kept = [
        whole if found[1] == 0 else found
        for found, whole in zip(outcome.validations, reference.validations, strict=True)
    ]
    assert replace(outcome, validations=tuple(kept)) == reference


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own in memory; needs the right to mount."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root; injected faults run anyway")
@pytest.mark.parametrize("spare", [200_000, 1_000_000, 2_500_000, 4_200_000, 6_000_000, 8_000_000])
def test_a_disk_that_is_really_full_ends_in_one_line_and_nothing_is_lost(
    spare: int, make: Make, reference: Outcome, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "coordinator disk: a full file system")
    record_property("point", str(spare))
    federation = make()
    # Without the ballast there is room for all that the run writes.
    with small_disk(federation.run, "48m"):
        ballast = federation.run / "ballast"
        ballast.write_bytes(bytes(48 * 1024 * 1024 - spare))
        federation.start_all()
        process = federation.processes["coordinator"]
        for _ in federation.until("the disk is full"):
            log = federation.log("coordinator")
            if "refused" in log and ("No space left" in log or "disk is full" in log):
                # It cannot take the updates and says so; it waits, as the workers do.
                break
            if process.exitcode is not None:
                line = end_of(federation, "coordinator", 2)
                assert '"level": "error"' in line
                assert "free space" in line
                break
        ballast.unlink()
        if process.exitcode is not None:
            federation.start("coordinator")
        federation.supervise()
        assert federation.outcome() == reference
        federation.end()


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_a_damaged_artifact_is_found_by_its_digest_and_named(damage: str, make: Make) -> None:
    federation = make(faults={"coordinator": ["step/aggregated#2=kill"]})
    federation.start_all()
    federation.ended("coordinator")
    with federation.store() as store:
        adapter = store.artifacts.path(store.adapters()[1])
        good = adapter.read_bytes()
    match damage:
        case "missing":
            adapter.unlink()
        case "short":
            adapter.write_bytes(good[:-1])
        case "changed":
            adapter.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    federation.start("coordinator")
    line = end_of(federation, "coordinator", 2)
    assert str(adapter) in line
    assert "the adapter after round 1" in line
    adapter.write_bytes(good)
    federation.start("coordinator")
    federation.supervise()


def test_a_damaged_update_is_named_and_asked_for_again(make: Make, reference: Outcome) -> None:
    federation = make(faults={"coordinator": ["transaction-committed/update=kill"]})
    federation.start_all()
    federation.ended("coordinator")
    with federation.store() as store:
        (update,) = store.updates(1)
        path = store.artifacts.path(update.sha256)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    federation.start("coordinator")
    federation.supervise()
    assert federation.outcome() == reference
    with federation.store() as store:
        assert [e.worker for e in store.events.all() if e.kind == "update_damaged"] == [update.worker]


def test_a_run_and_a_workers_folder_belong_to_one_process(make: Make) -> None:
    federation = make()
    first = federation.start("coordinator")
    federation.endpoint()
    federation.start("coordinator")
    assert federation.ended("coordinator") == 2
    # The first one goes on and prints as well.
    assert f"is in use by a coordinator, process {first.pid}" in federation.log("coordinator")
    worker = federation.start("worker-1")
    for _ in federation.until("worker 1 has joined"):
        assert worker.exitcode is None
        if "joined run" in federation.log("worker-1"):
            break
    federation.start("worker-1")
    assert federation.ended("worker-1") == 2
    assert f"is in use by worker worker-1, process {worker.pid}" in federation.log("worker-1")
    for process in (first, worker):
        process.kill()
        process.join()


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(make: Make) -> None:
    federation = make()
    federation.run.write_text("a file where the folder should be")
    federation.start("coordinator")
    assert str(federation.run) in end_of(federation, "coordinator", 2)
    federation.run.unlink()
    shutil.rmtree(federation.run, ignore_errors=True)
