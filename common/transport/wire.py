"""Protobuf ↔ records, for what workers and coordinator say; `admin_wire` is for what the owner is told.

These two are where both are known.

`*_from_pb` checks what protobuf cannot (a digest's form, an enum's range) and raises BadMessage.
"""

from fedpft.v1 import federation_pb2, types_pb2

from common.errors import BadMessage
from common.observability.tracing import well_formed
from common.quantization import Quantization
from common.records import (
    Activity,
    AdapterSpec,
    AdapterTargets,
    ArtifactKind,
    ArtifactRef,
    Chunk,
    EvaluateTask,
    JoinReply,
    JoinRequest,
    Progress,
    RunSpec,
    StopTask,
    SubModelRef,
    Task,
    TaskKind,
    TaskSpec,
    TrainTask,
    UpdateHeader,
    WaitTask,
    ZeroRule,
)
from common.secagg.news import SecureNews
from common.transport import secure_wire
from common.transport.enums import enum_from_pb
from common.transport.texts import digest as digest
from common.transport.texts import one_line as one_line
from common.transport.texts import worker_name as worker_name
from common.transport.training_wire import (
    dp_from_pb,
    dp_to_pb,
    terms_from_pb,
    terms_to_pb,
    training_from_pb,
    training_to_pb,
)

_MOST_U32 = 2**32 - 1


# --- artifacts ---


def ref_to_pb(ref: ArtifactRef) -> types_pb2.ArtifactRef:
    kind = types_pb2.ArtifactKind.Value(f"ARTIFACT_KIND_{ref.kind.name}")
    return types_pb2.ArtifactRef(kind=kind, sha256=ref.sha256, size=ref.size)


def ref_from_pb(m: types_pb2.ArtifactRef) -> ArtifactRef:
    kind = enum_from_pb(ArtifactKind, types_pb2.ArtifactKind, "ARTIFACT_KIND_", m.kind)
    return ArtifactRef(kind, digest(m.sha256), m.size)


def chunk_to_pb(chunk: Chunk) -> types_pb2.Chunk:
    return types_pb2.Chunk(offset=chunk.offset, data=bytes(chunk.data))


def chunk_from_pb(m: types_pb2.Chunk) -> Chunk:
    return Chunk(m.offset, m.data)


# --- joining ---


def join_request_to_pb(r: JoinRequest) -> federation_pb2.JoinRequest:
    return federation_pb2.JoinRequest(
        worker=r.worker,
        protocol_min=r.protocol_min,
        protocol_max=r.protocol_max,
        software=r.software,
        examples=r.examples,
        process=r.process,
        validation=r.validation,
    )


def join_request_from_pb(m: federation_pb2.JoinRequest) -> JoinRequest:
    name, software, process = worker_name(m.worker), m.software[:64], m.process[:64]
    protocols = m.protocol_min, m.protocol_max
    return JoinRequest(name, *protocols, software, m.examples, process, m.validation)


def join_reply_to_pb(r: JoinReply) -> federation_pb2.JoinResponse:
    return federation_pb2.JoinResponse(
        session=r.session,
        protocol=r.protocol,
        run=run_spec_to_pb(r.run),
        heartbeat_seconds=r.heartbeat_seconds,
    )


def join_reply_from_pb(m: federation_pb2.JoinResponse) -> JoinReply:
    return JoinReply(m.session, m.protocol, run_spec_from_pb(m.run), m.heartbeat_seconds)


def run_spec_to_pb(r: RunSpec) -> types_pb2.RunSpec:
    targets = types_pb2.AdapterTargets.Value(f"ADAPTER_TARGETS_{r.adapter.targets.name}")
    return types_pb2.RunSpec(
        run_id=r.run_id,
        task=types_pb2.TaskSpec(
            labels=() if r.task.labels_file else r.task.labels,
            max_length=r.task.max_length,
            kind=types_pb2.TaskKind.Value(f"TASK_KIND_{r.task.kind.name}"),
            pairs=r.task.pairs,
            labels_file=ref_to_pb(r.task.labels_file) if r.task.labels_file else None,
            conversations=r.task.conversations,
        ),
        adapter=types_pb2.AdapterSpec(
            targets=targets,
            rank=r.adapter.rank,
            alpha=r.adapter.alpha,
            dropout=r.adapter.dropout,
            freeze_a=r.adapter.freeze_a,
        ),
        training=training_to_pb(r.training),
        seed=r.seed,
        asks_classes=r.asks_classes,
        secure=secure_wire.spec_to_pb(r.secure),
        asks_targets=r.asks_targets,
        quantization=types_pb2.Quantization.Value(f"QUANTIZATION_{r.quantization.name}"),
        dp=dp_to_pb(r.dp),
        terms=terms_to_pb(r.terms),
    )


def run_spec_from_pb(m: types_pb2.RunSpec) -> RunSpec:
    a = m.adapter
    kind = enum_from_pb(TaskKind, types_pb2.TaskKind, "TASK_KIND_", m.task.kind)
    targets = enum_from_pb(AdapterTargets, types_pb2.AdapterTargets, "ADAPTER_TARGETS_", a.targets)
    return RunSpec(
        run_id=m.run_id,
        task=TaskSpec(
            kind,
            tuple(m.task.labels),
            m.task.max_length,
            m.task.pairs,
            ref_from_pb(m.task.labels_file) if m.task.HasField("labels_file") else None,
            m.task.conversations,
        ),
        adapter=AdapterSpec(targets, a.rank, a.alpha, a.dropout, a.freeze_a),
        training=training_from_pb(m.training),
        seed=m.seed,
        asks_classes=m.asks_classes,
        secure=secure_wire.spec_from_pb(m.secure) if m.HasField("secure") else None,
        asks_targets=m.asks_targets,
        # 0: of a coordinator from before there was a choice.
        quantization=enum_from_pb(Quantization, types_pb2.Quantization, "QUANTIZATION_", m.quantization or 1),
        dp=dp_from_pb(m.dp) if m.HasField("dp") else None,
        terms=terms_from_pb(m.terms) if m.HasField("terms") else None,
    )


# --- tasks ---


def sub_model_to_pb(r: SubModelRef) -> types_pb2.SubModel:
    return types_pb2.SubModel(
        config_json=r.config_json,
        ffn_widths=r.ffn_widths,
        base=ref_to_pb(r.base),
        patches=[ref_to_pb(p) for p in r.patches],
        tokenizer=[ref_to_pb(p) for p in r.processor],
        new_modules=r.new_modules,
    )


def sub_model_from_pb(m: types_pb2.SubModel) -> SubModelRef:
    return SubModelRef(
        m.config_json,
        tuple(m.ffn_widths),
        ref_from_pb(m.base),
        tuple(ref_from_pb(p) for p in m.patches),
        tuple(ref_from_pb(p) for p in m.tokenizer),
        tuple(m.new_modules),
    )


def task_to_pb(task: Task | SecureNews) -> federation_pb2.WatchTasksResponse:
    match task:
        case SecureNews():
            return secure_wire.news_to_pb(task)
        case TrainTask():
            train = federation_pb2.TrainTask(
                round=task.round,
                sub_model=sub_model_to_pb(task.sub_model),
                adapter=ref_to_pb(task.adapter),
                learning_rate_factor=task.learning_rate_factor,
                apoz_layers=task.apoz_layers,
                seconds_left=task.seconds_left,
                attempt=task.attempt,
                zero_rule=types_pb2.ZeroRule.Value(f"ZERO_RULE_{task.zero_rule.name}"),
                zero_threshold=task.zero_threshold,
                traceparent=task.traceparent,
                secure=secure_wire.task_to_pb(task.secure),
            )
            return federation_pb2.WatchTasksResponse(train=train)
        case EvaluateTask():
            evaluate = federation_pb2.EvaluateTask(
                round=task.round,
                sub_model=sub_model_to_pb(task.sub_model),
                adapter=ref_to_pb(task.adapter),
                seconds_left=task.seconds_left,
                attempt=task.attempt,
                traceparent=task.traceparent,
            )
            return federation_pb2.WatchTasksResponse(evaluate=evaluate)
        case WaitTask(reason):
            wait = federation_pb2.WaitTask(reason=reason)
            return federation_pb2.WatchTasksResponse(wait=wait)
        case StopTask(finished, reason):
            stop = federation_pb2.StopTask(finished=finished, reason=reason)
            return federation_pb2.WatchTasksResponse(stop=stop)


def task_from_pb(m: federation_pb2.WatchTasksResponse) -> Task | SecureNews:
    match m.WhichOneof("task"):
        case "train":
            t = m.train
            return TrainTask(
                t.round,
                sub_model_from_pb(t.sub_model),
                ref_from_pb(t.adapter),
                t.learning_rate_factor,
                tuple(t.apoz_layers),
                t.seconds_left,
                t.attempt,
                enum_from_pb(ZeroRule, types_pb2.ZeroRule, "ZERO_RULE_", t.zero_rule),
                t.zero_threshold,
                well_formed(t.traceparent),
                secure_wire.task_from_pb(t.secure) if t.HasField("secure") else None,
            )
        case "evaluate":
            e = m.evaluate
            return EvaluateTask(
                e.round,
                sub_model_from_pb(e.sub_model),
                ref_from_pb(e.adapter),
                e.seconds_left,
                e.attempt,
                well_formed(e.traceparent),
            )
        case "secure":
            return secure_wire.news_from_pb(m.secure)
        case "wait":
            return WaitTask(m.wait.reason)
        case "stop":
            return StopTask(m.stop.finished, m.stop.reason)
        case _:
            raise BadMessage("a task of a kind not known here; upgrade the worker")


def progress_to_pb(p: Progress) -> types_pb2.Progress:
    activity = types_pb2.Activity.Value(f"ACTIVITY_{p.activity.name}")
    return types_pb2.Progress(
        activity=activity,
        round=p.round,
        # What a message can hold: a figure for people must not end who tells it.
        step=min(p.step, _MOST_U32),
        steps=min(p.steps, _MOST_U32),
        loss=p.loss,
        trouble=p.trouble,
        attempt=p.attempt,
    )


def progress_from_pb(m: types_pb2.Progress) -> Progress:
    activity = enum_from_pb(Activity, types_pb2.Activity, "ACTIVITY_", m.activity)
    return Progress(activity, m.round, m.step, m.steps, m.loss, one_line(m.trouble), m.attempt)


# --- updates ---


def header_to_pb(h: UpdateHeader) -> federation_pb2.UpdateHeader:
    return federation_pb2.UpdateHeader(
        session=h.session,
        round=h.round,
        adapter_sha256=h.adapter_sha256,
        size=h.size,
        sha256=h.sha256,
        examples=h.examples,
        loss=h.loss,
        seconds=h.seconds,
        attempt=h.attempt,
        context=h.context,
        targets=h.targets,
    )


def header_from_pb(m: federation_pb2.UpdateHeader) -> UpdateHeader:
    """What the figures say is judged with the update: a loss of NaN is a bad update, not a bad message."""
    return UpdateHeader(
        m.session,
        m.round,
        digest(m.adapter_sha256),
        m.size,
        digest(m.sha256),
        m.examples,
        m.loss,
        m.seconds,
        m.attempt,
        m.context,
        m.targets,
    )
