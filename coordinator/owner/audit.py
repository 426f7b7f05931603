"""What of the FM a run has shown to its workers: every artifact that was served, compared with the FM."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from common.errors import StoreError
from common.model.ffn import Ffn, ffns_of
from common.model.int8 import Channels, channels_of, from_int8
from common.model.submodel import Held, SubModelPlan, apply_patch, build, own_weights, plain_patch
from common.quantization import Quantization
from common.records import ArtifactKind, ArtifactRef, SubModelRef
from common.run_status import Evaluation
from common.storage.tensors import TensorFile
from coordinator.algorithms import compression, exposure
from coordinator.algorithms.exposure import Exposure, Finding, Withheld
from coordinator.campaign.criterion import criterion
from coordinator.campaign.status import open_run
from coordinator.federation.authorization import PUBLISHED
from coordinator.modelling.content import MODEL, require_same
from coordinator.modelling.foundation import foundation_of
from coordinator.storage.store import Store

# Kinds whose content is tensors.
_TENSORS = (ArtifactKind.SUB_MODEL, ArtifactKind.NEURON_PATCH, ArtifactKind.ADAPTER)


@dataclass(frozen=True)
class Looked:
    """An artifact that workers got, or may get, and what was found in it."""

    artifact: ArtifactRef
    served: bool
    """Whether anyone has fetched it, as opposed to could have."""
    compared: str
    """"compared", "no tensors", or "deleted since": nothing needs it any more, so it cannot be looked at."""
    findings: tuple[Finding, ...] = ()
    problem: str = ""
    """Why it ought never to have been served, or empty."""

    @property
    def leaks(self) -> bool:
        """Whether it shows what must not be shown."""
        return bool(self.findings or self.problem)


@dataclass(frozen=True)
class OwnerAudit:
    """What a run has shown."""

    run_id: str
    construction: str
    withheld_vectors: int
    """Vectors of cut neurons and dropped layers that were searched for."""
    exposures: tuple[Exposure, ...]
    looked: tuple[Looked, ...]
    evaluations: tuple[Evaluation, ...]
    """Of the last round: the tuned FM and the sub-FM that workers end up with."""
    criterion: str = ""
    """Whether that sub-FM is as good as the tuned FM, for people."""

    @property
    def leaks(self) -> bool:
        """Whether anything that was cut got out."""
        return any(looked.leaks for looked in self.looked)


def audit_run(directory: Path, model: str | None = None) -> OwnerAudit:
    """Compare all that a run has published with its FM. Blocking: loads the FM.

    `model` says where the FM is now, if not where the run left it.

    Raises StoreError when the directory holds no run with a sub-FM, or a file of it is damaged;
    ModelError when the FM is not where it was.
    """
    store, config = open_run(directory, model)
    try:
        stored = store.sub_model()
        if stored is None:
            raise StoreError(f"the run in {directory} has no sub-FM yet: nothing was served")
        require_same(store, config, [MODEL])
        reference, plan_ref, _ = stored
        fm = foundation_of(config).model
        plan = SubModelPlan.from_tensors(_tensors(store, plan_ref))
        versions = []
        held = Held(config.sub_fm.quantization, reference.new_modules)
        module = build(
            compression.config_of(fm, plan),
            config.task.kind,
            reference.ffn_widths,
            dict(_tensors(store, reference.base)),
            held=held,
        )
        int8 = held.quantization is Quantization.INT8
        channels = channels_of(module, config.task.kind, held.new_modules) if int8 else {}
        versions.append(from_int8(own_weights(module), channels))
        for patch in reference.patches:
            apply_patch(ffns_of(module), _tensors(store, patch))
            versions.append(from_int8(own_weights(module), channels))
        plain = partial(_plain, ffns=ffns_of(module), channels=channels)
        secret = exposure.withheld(fm, plan)
        served = store.artifacts.served()
        evaluations = store.evaluations()
        last = max((e.round for e in evaluations), default=0)
        return OwnerAudit(
            run_id=store.run_id(),
            construction=config.sub_fm.construction,
            withheld_vectors=len(secret.names),
            exposures=tuple(exposure.exposures(fm, plan, versions, channels)),
            looked=tuple(
                _look(store, artifact, artifact.sha256 in served, secret, plan, plain)
                for artifact in _open_to_workers(store, reference, served)
            ),
            evaluations=tuple(e for e in evaluations if e.round == last),
            criterion=str(criterion(evaluations, last, config.task.kind) or ""),
        )
    finally:
        store.close()


def _open_to_workers(
    store: Store, reference: SubModelRef, served: Mapping[str, ArtifactRef]
) -> list[ArtifactRef]:
    """What was fetched, whatever it is; and what may be: published kinds that are still held."""
    held = {a.sha256: a for a in store.artifacts.held() if a.kind in PUBLISHED}
    named = {a.sha256: a for a in (reference.base, *reference.patches, *reference.processor)}
    found = held | named | dict(served)
    return [found[sha256] for sha256 in sorted(found, key=lambda s: (found[s].kind, s))]


def _look(
    store: Store,
    artifact: ArtifactRef,
    served: bool,
    secret: Withheld,
    plan: SubModelPlan,
    plain: Callable[[ArtifactKind, Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> Looked:
    if artifact.kind not in PUBLISHED:
        problem = f"a {artifact.kind} must never leave the coordinator"
        return Looked(artifact, served, "no tensors", problem=problem)
    if artifact.kind not in _TENSORS:
        return Looked(artifact, served, "no tensors")
    if not store.artifacts.path(artifact.sha256).exists():
        return Looked(artifact, served, "deleted since")
    tensors = _tensors(store, artifact)
    findings = tuple(exposure.find(secret, plain(artifact.kind, tensors)))
    told = exposure.holds_plan(plan, tensors)
    problem = f"tensor {told} tells which neurons were kept" if told else ""
    return Looked(artifact, served, "compared", findings, problem)


def _plain(
    kind: ArtifactKind,
    tensors: Mapping[str, Tensor],
    ffns: Sequence[Ffn],
    channels: Mapping[str, Channels],
) -> Mapping[str, Tensor]:
    """What an artifact's int8 stands for, in the sub-FM with these FFNs."""
    match kind:
        case ArtifactKind.SUB_MODEL:
            return from_int8(tensors, channels)
        case ArtifactKind.NEURON_PATCH:
            return plain_patch(ffns, tensors)
    return tensors


def _tensors(store: Store, artifact: ArtifactRef) -> Mapping[str, Tensor]:
    path = store.artifacts.path(artifact.sha256)
    if not path.exists():
        raise StoreError(f"{path} ({artifact.kind}) is missing; the audit needs it")
    return TensorFile(path).load()
