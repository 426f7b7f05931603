"""What of a run's directory is still needed, whether it is whole, and the end of the rest. Blocking."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from common.errors import StoreError
from common.records import ArtifactKind, ArtifactRef
from common.runtime.fault_points import Point, reach
from common.storage.files import disk_problem, sha256_of
from coordinator.storage.store import Store

# Beside the newest adapter the one before: a worker that has not heard of the new round may still fetch it.
LEAST_ADAPTERS = 2


def collect(store: Store, adapters: int = LEAST_ADAPTERS, best: Iterable[int] = ()) -> int:
    """Delete artifacts that nothing needs any more; returns how many bytes that freed.

    Needed are the sub-FM with its patches, the newest `adapters` and those of the rounds `best`, with the
    server optimiser's states, and the updates of the last round and of later ones: an alignment after it
    reads their APoZ counts.
    Raises StoreError.
    """
    needed = {artifact.sha256 for artifact, _ in _needed(store, adapters, best)}
    held = [artifact for artifact in store.artifacts.held() if artifact.kind is not ArtifactKind.LABELS]
    idle = [artifact for artifact in held if artifact.sha256 not in needed]
    if idle:
        store.artifacts.give_up(artifact.sha256 for artifact in idle)
    for artifact in idle:
        _delete(store.artifacts.path(artifact.sha256), artifact.kind)
    return sum(artifact.size for artifact in idle)


def sweep(store: Store) -> None:
    """Before a process begins: delete what an earlier one left half done. Raises StoreError."""
    latest = store.latest_adapter()
    number = latest[0] if latest else 0
    held = {artifact.sha256 for artifact in store.artifacts.held()}
    for path in _files(store.directory / "artifacts"):
        if path.name not in held:
            _delete(path, "left-over")
    for path in store.directory.glob(".*.part"):
        _delete(path, "left-over")
    for path in store.artifacts.spooled():
        round_number = path.name.split("-")[1:2]
        if not (round_number and round_number[0].isdecimal() and int(round_number[0]) > number):
            _delete(path, "spool")


def verify(store: Store, best: Iterable[int] = ()) -> list[tuple[int, str]]:
    """Check that every artifact that the run needs to go on is there and is what its name says.

    Updates that a round under way has received and that are damaged are forgotten; returns their rounds
    and workers, who will be asked again. Raises StoreError, naming them, for all others.
    """
    damaged = []
    forgotten = []
    for artifact, what in _needed(store, best=best):
        problem = _problem(store.artifacts.path(artifact.sha256), artifact)
        if problem is None:
            continue
        if (pending := _pending(store, artifact)) is not None:
            store.forget_update(*pending)
            forgotten.append(pending)
        else:
            damaged.append(f"{store.artifacts.path(artifact.sha256)} ({what}) {problem}")
    if damaged:
        raise StoreError(f"restore from a copy, or begin anew in another run.directory: {'; '.join(damaged)}")
    return forgotten


def sizes(store: Store) -> dict[str, int]:
    """Bytes of artifacts, of the spool and of the database."""
    return {
        "artifacts": sum(artifact.size for artifact in store.artifacts.held()),
        "spool": sum(_size(path) for path in store.artifacts.spooled()),
        "database": sum(_size(path) for path in store.directory.glob("run.sqlite*")),
    }


def _needed(
    store: Store, kept: int = LEAST_ADAPTERS, best: Iterable[int] = ()
) -> Iterator[tuple[ArtifactRef, str]]:
    """Artifacts that the run, its workers or an export may still read, and what they are for people."""
    if stored := store.sub_model():
        reference, plan, _ = stored
        yield reference.base, "the sub-FM"
        yield plan, "the sub-FM's plan"
        for file in reference.processor:
            yield file, "the tokenizer or image processor"
    adapters = store.adapters()
    last = max(adapters, default=0)
    held = {artifact.sha256 for artifact in store.artifacts.held()}
    # The best ones of a run that an earlier version began may be gone.
    better = {number for number in best if adapters.get(number) in held}
    numbers = sorted({*sorted(adapters)[-kept:], *better})
    # Whoever goes back to one of these rounds needs the sub-FM as it was then.
    patches = (patch for number in numbers for patch in store.alignments.patches(number))
    for patch in dict.fromkeys((*patches, *store.alignments.patches())):
        yield patch, "an alignment of the sub-FM"
    for number in numbers:
        yield store.artifacts.get(adapters[number]), f"the adapter after round {number}"
        # An older one is of use with its adapter only; when states are not kept for that, not at all.
        if (number == last or kept > LEAST_ADAPTERS) and (state := store.server_state(number)):
            yield state, f"the server optimiser's state after round {number}"
    for number in {last, *better}:
        if (correction := store.corrections.of(number)) and correction.adapter:
            yield correction.adapter, "the corrected adapter"
    for number in (last, last + 1):
        if (total := store.secure.sum_of(number)) is not None:
            # Of masked updates nothing but their sum is of use any more.
            yield store.artifacts.get(total.sha256), f"the sum of the updates of round {number}"
            continue
        for update in store.updates(number):
            yield store.artifacts.get(update.sha256), f"the update of {update.worker} for round {number}"


def _pending(store: Store, artifact: ArtifactRef) -> tuple[int, str] | None:
    """The round and worker of an update that no adapter holds yet, and that no round has closed with."""
    if artifact.kind is not ArtifactKind.UPDATE:
        return None
    number = max(store.adapters(), default=0) + 1
    if store.survivors(number) is not None:
        return None
    found = (u.worker for u in store.updates(number) if u.sha256 == artifact.sha256)
    worker = next(found, None)
    return None if worker is None else (number, worker)


def _problem(path: Path, artifact: ArtifactRef) -> str | None:
    try:
        if not path.exists():
            return "is missing"
        if path.stat().st_size != artifact.size:
            return f"has {path.stat().st_size} bytes instead of {artifact.size}"
        return None if sha256_of(path) == artifact.sha256 else "does not match its digest"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*/*") if path.is_file())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _delete(path: Path, subject: str) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot delete {path}: {disk_problem(error, path.parent)}") from error
    reach(Point.FILE_REMOVED, subject)
