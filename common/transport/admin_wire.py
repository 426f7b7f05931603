"""Protobuf ↔ records, for what a run's owner is told: status and events."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict

from fedpft.v1 import admin_pb2, types_pb2

from common.records import Phase, TaskKind
from common.run_offers import Declined
from common.run_status import (
    Evaluation,
    Event,
    GradientGap,
    LayerGap,
    ModelFacts,
    RunStatus,
    Traffic,
    Validation,
    WorkerStatus,
)
from common.transport.enums import enum_from_pb
from common.transport.texts import one_line
from common.transport.wire import progress_from_pb, progress_to_pb

# The largest item is a gradient gap of a model of a thousand layers: 50 KB.
_ITEMS_A_PART = 16
_LISTS = ("workers", "evaluations", "gaps", "validations", "declined")


def _worker_status_to_pb(w: WorkerStatus) -> admin_pb2.WorkerStatus:
    traffic = [
        admin_pb2.Traffic(round=t.round, kind=t.kind, bytes_down=t.bytes_down, bytes_up=t.bytes_up)
        for t in w.traffic
    ]
    return admin_pb2.WorkerStatus(
        worker=w.worker,
        progress=progress_to_pb(w.progress),
        examples=w.examples,
        traffic=traffic,
    )


def _worker_status_from_pb(m: admin_pb2.WorkerStatus) -> WorkerStatus:
    traffic = tuple(Traffic(t.round, t.kind, t.bytes_down, t.bytes_up) for t in m.traffic)
    return WorkerStatus(m.worker, progress_from_pb(m.progress), m.examples, traffic)


def _facts_to_pb(f: ModelFacts) -> admin_pb2.ModelFacts:
    return admin_pb2.ModelFacts(
        fm_parameters=f.fm_parameters,
        sub_fm_parameters=f.sub_fm_parameters,
        fm_layer_parameters=f.fm_layer_parameters,
        sub_fm_layer_parameters=f.sub_fm_layer_parameters,
        adapter_parameters=f.adapter_parameters,
        fm_bytes=f.fm_bytes,
    )


def _facts_from_pb(m: admin_pb2.ModelFacts) -> ModelFacts:
    return ModelFacts(
        m.fm_parameters,
        m.sub_fm_parameters,
        m.fm_layer_parameters,
        m.sub_fm_layer_parameters,
        m.adapter_parameters,
        m.fm_bytes,
    )


def _gap_to_pb(g: GradientGap) -> admin_pb2.GradientGap:
    return admin_pb2.GradientGap(
        round=g.round,
        cosine=g.cosine,
        norm_ratio=g.norm_ratio,
        drift=g.drift,
        layers=[admin_pb2.LayerGap(**asdict(layer)) for layer in g.layers],
    )


def _gap_from_pb(m: admin_pb2.GradientGap) -> GradientGap:
    layers = tuple(
        LayerGap(
            n.layer,
            n.cosine,
            n.norm_ratio,
            n.gradient_difference,
            n.output_difference,
            n.weight_difference,
        )
        for n in m.layers
    )
    return GradientGap(m.round, m.cosine, m.norm_ratio, m.drift, layers)


def status_to_pb(s: RunStatus) -> admin_pb2.GetStatusResponse:
    return admin_pb2.GetStatusResponse(
        run_id=s.run_id,
        phase=types_pb2.Phase.Value(f"PHASE_{s.phase.name}"),
        round=s.round,
        rounds=s.rounds,
        waiting_for=s.waiting_for,
        step=s.step,
        steps=s.steps,
        workers=[_worker_status_to_pb(w) for w in s.workers],
        evaluations=[
            admin_pb2.Evaluation(
                round=e.round, model=e.model, accuracy=e.accuracy, loss=e.loss, metrics=e.metrics
            )
            for e in s.evaluations
        ],
        models=_facts_to_pb(s.models) if s.models else None,
        adapter_sha256=s.adapter_sha256,
        directory=s.directory,
        task=types_pb2.TaskKind.Value(f"TASK_KIND_{s.task.name}"),
        gaps=[_gap_to_pb(g) for g in s.gaps],
        validations=[admin_pb2.Validation(**asdict(v)) for v in s.validations],
        best=s.best,
        result=s.result,
        privacy=s.privacy,
        declined=[admin_pb2.DeclinedWorker(**asdict(d)) for d in s.declined],
        phase_seconds_left=s.phase_seconds_left,
        run_seconds_left=s.run_seconds_left,
    )


def status_from_pb(m: admin_pb2.GetStatusResponse) -> RunStatus:
    return RunStatus(
        run_id=m.run_id,
        phase=enum_from_pb(Phase, types_pb2.Phase, "PHASE_", m.phase),
        round=m.round,
        rounds=m.rounds,
        waiting_for=m.waiting_for,
        step=m.step,
        steps=m.steps,
        workers=tuple(_worker_status_from_pb(w) for w in m.workers),
        evaluations=tuple(
            Evaluation(e.round, e.model, e.accuracy, e.loss, dict(e.metrics)) for e in m.evaluations
        ),
        gaps=tuple(_gap_from_pb(g) for g in m.gaps),
        models=_facts_from_pb(m.models) if m.HasField("models") else None,
        adapter_sha256=m.adapter_sha256,
        directory=m.directory,
        task=enum_from_pb(TaskKind, types_pb2.TaskKind, "TASK_KIND_", m.task),
        validations=tuple(
            Validation(v.round, v.workers, v.examples, v.accuracy, v.loss, dict(v.metrics), v.worker)
            for v in m.validations
        ),
        best=m.best,
        result=m.result,
        privacy=tuple(m.privacy),
        declined=tuple(Declined(d.worker, one_line(d.reason), d.time) for d in m.declined),
        phase_seconds_left=m.phase_seconds_left,
        run_seconds_left=m.run_seconds_left,
    )


def status_parts(s: RunStatus) -> Iterator[admin_pb2.ReadStatusResponse]:
    """A status in messages of bounded size: lists go on where the part before ended."""
    whole = status_to_pb(s)
    rest = {name: list(getattr(whole, name)) for name in _LISTS}
    for name in rest:
        whole.ClearField(name)  # type: ignore[arg-type]  # mistyped for names that vary
    yield admin_pb2.ReadStatusResponse(part=whole)
    for name, items in rest.items():
        for begin in range(0, len(items), _ITEMS_A_PART):
            part = admin_pb2.GetStatusResponse(**{name: items[begin : begin + _ITEMS_A_PART]})  # type: ignore[arg-type]
            yield admin_pb2.ReadStatusResponse(part=part)


def status_of(parts: Iterable[admin_pb2.ReadStatusResponse]) -> RunStatus:
    """The inverse."""
    whole = admin_pb2.GetStatusResponse()
    for message in parts:
        whole.MergeFrom(message.part)
    return status_from_pb(whole)


def event_to_pb(e: Event) -> admin_pb2.WatchEventsResponse:
    return admin_pb2.WatchEventsResponse(
        sequence=e.sequence,
        time=e.time,
        kind=e.kind,
        round=e.round,
        worker=e.worker,
        text=e.text,
        values=e.values,
    )


def event_from_pb(m: admin_pb2.WatchEventsResponse) -> Event:
    return Event(m.sequence, m.time, m.kind, m.text, m.round, m.worker, dict(m.values))
