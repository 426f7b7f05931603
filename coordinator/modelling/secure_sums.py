"""Masked updates → their mean, tensor by tensor. Blocking."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from common.errors import BadUpdate, RunFailed
from common.model.ring_update import SCALARS, as_ring, mean_schema, mean_tensors, read_scalars
from common.privacy.whole_worker import Grid
from common.records import ArtifactKind, ArtifactRef
from common.runtime.compute import one_thread
from common.secagg.context import digest
from common.secagg.masks import add
from common.secagg.records import Mask, SecureRound
from common.secure_task import SecureSpec
from common.storage.tensors import TensorFile
from coordinator.modelling.round_files import opened
from coordinator.storage.secure import StoredSum
from coordinator.storage.store import Store, StoredUpdate


class Sums(Mapping[str, Tensor]):
    """The sums of files of ring elements and of masks, each tensor summed when it is asked for."""

    def __init__(self, files: Sequence[TensorFile], masks: Sequence[Mask], context: bytes) -> None:
        self._files, self._masks, self._context = files, masks, context

    def __getitem__(self, name: str) -> Tensor:
        total = self._files[0][name].clone()
        words = as_ring(total)
        for file in self._files[1:]:
            words += as_ring(file[name])
        for mask in self._masks:
            add(words, mask, name, self._context)
        return total

    def __iter__(self) -> Iterator[str]:
        return iter(self._files[0])

    def __len__(self) -> int:
        return len(self._files[0])


@one_thread()
def sum_up(
    store: Store,
    spec: SecureSpec,
    within: SecureRound,
    updates: Sequence[StoredUpdate],
    masks: Sequence[Mask] = (),
    grid: Grid | None = None,
) -> tuple[ArtifactRef, StoredSum]:
    """The mean of the updates as a file like one of theirs, and the figures that come with it.

    `masks` make the sum of the updates the plain sum; `grid` says how each worker added noise to its own,
    where that hides the whole worker. Raises RunFailed when that is none that workers can
    have sent: nobody can be blamed, for nobody's part is seen.
    """
    files = [opened(store, update, len(updates) + 1) for update in updates]
    sums = Sums(files, masks, digest(within))
    try:
        scalars = read_scalars(sums[SCALARS], spec, len(updates))
        schema = mean_schema(files[0].schema())
        file = store.artifacts.add_each(
            ArtifactKind.UPDATE, schema, mean_tensors(sums, within, scalars.weight, grid)
        )
    except BadUpdate as error:
        raise RunFailed(
            f"round {within.round}: {error}; which worker cannot be told, for only the sum is seen. Ask the "
            f"workers to look at their data and devices; then `fedpft rewind {store.directory} --round "
            f"{within.round - 1}` asks for this round again, of workers started with --forget-opening"
        ) from error
    return file, StoredSum(file.sha256, len(updates), scalars.weight, scalars.loss, scalars.clipped)


def clip_of(store: Store, first: float, round_number: int) -> float:
    """Largest norm of an update in a round: doubled after every round in which an update was larger, where
    that is told."""
    larger = [n for n, total in store.secure.sums().items() if n < round_number and total.clipped]
    return first * 2.0 ** len(larger)
