"""What a round's files make together: the next adapter, the counts of all workers, a patch. Blocking."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from common.config.choices import AggregationRule, LoraAveraging
from common.config.run import RunConfig
from common.errors import StoreError
from common.model.apoz import ZeroCounts, from_tensors, merge
from common.model.ffn import Ffn
from common.model.submodel import make_patch
from common.model.update import APOZ, DELTA, Prefixed
from common.records import ArtifactKind, ArtifactRef
from common.runtime.compute import one_thread
from common.storage.tensor_header import in_file_order
from common.storage.tensors import TensorFile
from coordinator.algorithms import aggregation
from coordinator.algorithms.aggregation import Update
from coordinator.context import adapter_spec
from coordinator.storage.alignments import MOST_PATCHES, StoredPatch
from coordinator.storage.store import Store, StoredUpdate


def aggregate(
    store: Store,
    config: RunConfig,
    adapter: ArtifactRef,
    updates: Sequence[StoredUpdate],
    state: ArtifactRef | None,
) -> tuple[ArtifactRef, ArtifactRef | None]:
    """The next adapter and the server optimiser's next state (FedPFT, Algorithm 1, server update).

    The adapter is read, computed and written tensor by tensor: by the mean, memory grows neither with
    its size nor with the number of updates. A server optimiser's state is held whole.
    """
    files = len(updates) + 1
    start = opened(store, adapter, files)
    changes = [
        Update(
            u.worker,
            u.targets if config.weighs_tokens else u.examples,
            Prefixed(opened(store, u, files), DELTA),
        )
        for u in updates
    ]
    a = config.aggregation
    if a.lora is LoraAveraging.EXACT:
        spec = adapter_spec(config)
        following = aggregation.exact(start, changes, spec.alpha / spec.rank)
        return store.artifacts.add_tensors(ArtifactKind.ADAPTER, following), None
    settings = aggregation.Settings(
        a.rule,
        a.trim,
        a.byzantine,
        a.optimizer,
        a.learning_rate,
        a.momentum,
        a.second_momentum,
        a.tau,
        a.density,
    )
    remembered: dict[str, Tensor] = {}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        before = opened(store, state).load() if state else {}
        order = in_file_order(schema)
        for one in aggregation.each_aggregated(start, changes, before, settings, order):
            remembered.update(one.state)
            yield one.name, one.tensor

    schema = start.schema()
    with passing(a.rule):
        result = store.artifacts.add_each(ArtifactKind.ADAPTER, schema, tensors())
    if not remembered:
        return result, None
    return result, store.artifacts.add_tensors(ArtifactKind.SERVER_STATE, remembered)


def zero_counts(
    config: RunConfig, store: Store, updates: Sequence[StoredUpdate], widths: Mapping[int, int]
) -> Mapping[int, ZeroCounts]:
    """APoZ counts by layer, summed over all updates. Raises StoreError when none carries any.

    Of workers that do not count, for differential privacy, no neuron was ever at rest; `widths` by layer.
    """
    if config.private:
        none = torch.ones((), dtype=torch.int64)
        return {
            layer: ZeroCounts(torch.zeros(width, dtype=torch.int64), none) for layer, width in widths.items()
        }
    counts = [from_tensors(Prefixed(opened(store, u), APOZ)) for u in updates]
    counted = [c for c in counts if c]
    if not counted:
        raise StoreError("no update of this round carries APoZ counts")
    return {layer: merge([c[layer] for c in counted]) for layer in counted[0]}


def write_patch(store: Store, ffns: Sequence[Ffn], neurons: Mapping[int, Tensor]) -> StoredPatch:
    """The neurons that an alignment changed, int64 [N] by layer; now and then with all changed before.

    Each is a file that a task names and a worker may still have to fetch, so they must not grow in number.
    """
    earlier = store.alignments.patches()
    whole = len(earlier) + 1 >= MOST_PATCHES
    if whole:
        named = [opened(store, patch) for patch in earlier]
        neurons = {layer: _union(layer, chosen, named) for layer, chosen in neurons.items()}
    patch = store.artifacts.add_tensors(ArtifactKind.NEURON_PATCH, make_patch(ffns, neurons))
    return StoredPatch(patch, whole)


def _union(layer: int, chosen: Tensor, patches: Sequence[TensorFile]) -> Tensor:
    """Neurons of a layer that any of them names, ascending."""
    every: Tensor = torch.cat([chosen.cpu(), *(patch[f"{layer}.neurons"] for patch in patches)]).unique()
    return every


def opened(store: Store, content: ArtifactRef | StoredUpdate, beside: int = 1) -> TensorFile:
    """The file of an artifact, of which `beside` in all are read side by side."""
    return TensorFile(store.artifacts.path(content.sha256), beside)


def passing(rule: AggregationRule) -> AbstractContextManager[None]:
    """How many threads a rule is computed by: the mean does nothing but pass over memory."""
    return one_thread() if rule is AggregationRule.MEAN else nullcontext()
