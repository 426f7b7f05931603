"""Entering a run, and what it asks before."""

import logging
import math
from dataclasses import replace

from common.errors import AgainstPolicy, BadMessage, ClassesWanted, NotAllowed
from common.records import JoinReply, RunSpec
from worker.budget import require_left
from worker.client import CoordinatorClient
from worker.data import PrivateData
from worker.download_limits import read_labels, require_labels_file
from worker.local_model import Place
from worker.policy import require_allowed
from worker.secure_files import SecureFiles
from worker.secure_policy import require_same_sums

log = logging.getLogger(__name__)


def require_weights(run: RunSpec) -> None:
    """Raises BadMessage for weights of classes that are not the run's, or no factors."""
    weights, classes = run.training.class_weights, len(run.task.labels)
    if weights and (len(weights) != classes or not all(0 < w < math.inf for w in weights)):
        raise BadMessage(f"the run's weights must be {classes} positive numbers, one for each of its classes")


async def joined(name: str, coordinator: CoordinatorClient, data: PrivateData, place: Place) -> JoinReply:
    """Join; where the run asks for it, tell the names and numbers of classes before.

    Raises NotAllowed when this worker's owner keeps them, or does not want such a run, DataError when these
    are no data for the run, and what the connection raises for good.
    """
    if (described := await coordinator.described()) is not None:
        # Before the number of examples is told to anybody who may not need it.
        require_wanted(place, described, data)
        if described.secure is not None:
            coordinator.seal()
    elif place.secure.required:
        place.secure.require_known()
    elif place.privacy.asks:
        place.privacy.require_known()
    while True:
        try:
            reply = await coordinator.join()
            if described is not None:
                require_same_sums(described, reply.run)
            elif reply.run.secure is not None:
                place.secure.require_known()
            return reply
        except ClassesWanted:
            if described is not None and described.secure is not None:
                raise NotAllowed(
                    "the run takes sums only, and asks for the numbers of this worker's classes; they are "
                    "not summed, so this worker does not tell them"
                ) from None
            run = await coordinator.describe()
            data.require_form(run.task)
            if not place.tells_classes:
                raise AgainstPolicy(
                    "the run asks for the names and numbers of this worker's classes, and --keep-classes "
                    "forbids to tell them; ask the run's owner to list task.labels, without class_weights"
                ) from None
            told = data.class_counts(name, run.task.kind)
            log.info("telling the coordinator the names and numbers of %d classes", len(told.counts))
            await coordinator.tell_classes(told)


async def with_labels(run: RunSpec, coordinator: CoordinatorClient, place: Place) -> RunSpec:
    """The run with the names of its classes, where these are too many to have come with it."""
    if (file := run.task.labels_file) is None:
        return run
    require_labels_file(file)
    path = await coordinator.download(file, place.folder / "artifacts")
    return replace(run, task=replace(run.task, labels=read_labels(path.read_bytes())))


def require_wanted(place: Place, run: RunSpec, data: PrivateData) -> None:
    """Raises NotAllowed for a run that this worker's owner does not want it to take part in, BudgetSpent
    where what is left does not suffice, BadMessage for a promise that the run itself breaks, ConfigError
    where a package lacks, StoreError."""
    require_allowed(place.policy, run, place.coordinator)
    place.secure.require(run)
    _require_as_before(place, run)
    place.privacy.require(run, len(data))
    require_left(place.folder, place.privacy, data.digest, run, len(data))


def _require_as_before(place: Place, run: RunSpec) -> None:
    """Raises NotAllowed when this worker has been in masked sums of a run that takes plain updates now."""
    folder = place.folder / "secure"
    if run.secure is not None or not folder.exists():
        return
    history = SecureFiles(folder).history()
    if history is not None and history.run_id == run.run_id:
        raise NotAllowed(
            "the run's coordinator would see this worker's updates, and took masked sums of them before; ask "
            "the run's owner why privacy.secure is off, or join with another --folder"
        )
