"""Every record survives its protobuf message; what breaks the protocol's rules does not get in."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fedpft.v1 import admin_pb2, federation_pb2, types_pb2
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BadMessage, ConfigError
from common.private_task import DpSpec, DpUnit
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
    LocalOptimizer,
    Phase,
    Progress,
    RunSpec,
    ScoreSums,
    StopTask,
    SubmittedScores,
    SubModelRef,
    TaskKind,
    TaskSpec,
    TrainingSpec,
    TrainTask,
    UpdateHeader,
    WaitTask,
    ZeroRule,
)
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
from common.secure_task import MOST_COUNTED, SecureSpec
from common.transport import admin_wire, score_wire, wire
from common.transport.training_wire import dp_from_pb, dp_to_pb
from coordinator.storage.store import Store
from tests.contexts import context

LORA = AdapterSpec(AdapterTargets.ATTENTION, 8, 32.0, 0.1)
NEVER_SENT = (ArtifactKind.PLAN, ArtifactKind.UPDATE, ArtifactKind.SERVER_STATE, ArtifactKind.CORRECTED)
SENT = [kind for kind in ArtifactKind if kind not in NEVER_SENT]

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
number, text = st.floats(allow_nan=False), st.text(max_size=20)
above_0 = st.floats(0, exclude_min=True, allow_infinity=False)
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
from_1 = st.integers(1, 2**32 - 1)
digest = st.text("0123456789abcdef", min_size=64, max_size=64)
name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


def several(items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=3).map(tuple)


ref = st.builds(ArtifactRef, st.sampled_from(SENT), digest, u64)
sub_model = st.builds(SubModelRef, text, several(u32), ref, several(ref), several(ref), several(text))
secure_spec = st.builds(
    SecureSpec, u32, st.sampled_from((32, 64)), st.booleans(), st.integers(1, MOST_COUNTED), st.booleans()
)
spec = st.builds(
    RunSpec,
    text,
    st.builds(
        TaskSpec, st.sampled_from(TaskKind), several(text), u32, st.booleans(), conversations=st.booleans()
    ),
    st.builds(AdapterSpec, st.sampled_from(AdapterTargets), u32, number, number, st.booleans()),
    st.builds(
        TrainingSpec,
        u32,
        u32,
        number,
        number,
        number,
        number,
        number,
        st.sampled_from(LocalOptimizer),
        number,
        st.just(()),
        u32,
        st.booleans(),
        number,
    ),
    u64,
    st.booleans(),
    st.one_of(
        st.none(),
        secure_spec,
    ),
    st.booleans(),
    st.sampled_from(Quantization),
    dp=st.none()
    | st.builds(DpSpec, st.just(DpUnit.EXAMPLE), above_0, shares, above_0, from_1, from_1)
    | st.builds(DpSpec, st.just(DpUnit.WORKER), above_0, shares, above_0, from_1, from_1, above_0),
)
progress = st.builds(Progress, st.sampled_from(Activity), u32, u32, u32, number, name, u32)
task = st.one_of(
    st.builds(
        TrainTask,
        u32,
        sub_model,
        ref,
        number,
        several(u32),
        number,
        u32,
        st.sampled_from(ZeroRule),
        number,
    ),
    st.builds(EvaluateTask, u32, sub_model, ref, number, u32),
    st.builds(WaitTask, text),
    st.builds(StopTask, st.booleans(), text),
)
worker = st.builds(WorkerStatus, text, progress, u64, several(st.builds(Traffic, u32, text, u64, u64)))
layer_gap = st.builds(LayerGap, u32, number, number, number, number, number)
gap = st.builds(GradientGap, u32, number, number, number, several(layer_gap))
status = st.builds(
    RunStatus,
    run_id=text,
    phase=st.sampled_from(Phase),
    round=u32,
    rounds=u32,
    waiting_for=text,
    step=u32,
    steps=u32,
    workers=several(worker),
    evaluations=several(st.builds(Evaluation, u32, text, number, number)),
    gaps=several(gap),
    models=st.none() | st.builds(ModelFacts, u64, u64, u64, u64, u64, u64),
    adapter_sha256=text,
    directory=text,
    task=st.sampled_from(TaskKind),
    validations=several(
        st.builds(Validation, u32, u32, u64, number, number, st.dictionaries(text, number, max_size=3), text)
    ),
    best=u32,
    result=u32,
)
event = st.builds(Event, u64, number, text, text, u32, text, st.dictionaries(text, number, max_size=3))

ROUND_TRIPS = {
    "artifact": (ref, wire.ref_to_pb, wire.ref_from_pb),
    "chunk": (st.builds(Chunk, u64, st.binary()), wire.chunk_to_pb, wire.chunk_from_pb),
    "join request": (
        st.builds(JoinRequest, name, u32, u32, text, st.integers(1, 2**64 - 1), text, u64),
        wire.join_request_to_pb,
        wire.join_request_from_pb,
    ),
    "join reply": (
        st.builds(JoinReply, text, u32, spec, number),
        wire.join_reply_to_pb,
        wire.join_reply_from_pb,
    ),
    "run": (spec, wire.run_spec_to_pb, wire.run_spec_from_pb),
    "sub-model": (sub_model, wire.sub_model_to_pb, wire.sub_model_from_pb),
    "task": (task, wire.task_to_pb, wire.task_from_pb),
    "progress": (progress, wire.progress_to_pb, wire.progress_from_pb),
    "header": (
        st.builds(UpdateHeader, text, u32, digest, u64, digest, u64, number, number),
        wire.header_to_pb,
        wire.header_from_pb,
    ),
    "scores": (
        st.builds(
            SubmittedScores,
            text,
            u32,
            digest,
            st.builds(ScoreSums, u64, u64, u64, number, several(u64), several(number)),
        ),
        score_wire.scores_to_pb,
        score_wire.scores_from_pb,
    ),
    "status": (status, admin_wire.status_to_pb, admin_wire.status_from_pb),
    "event": (event, admin_wire.event_to_pb, admin_wire.event_from_pb),
}


@pytest.mark.parametrize("kind", ROUND_TRIPS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_record_survives_the_wire(kind: str, data: st.DataObject) -> None:
    records, to_pb, from_pb = ROUND_TRIPS[kind]
    record = data.draw(records)
    message = to_pb(record)
    assert from_pb(type(message).FromString(message.SerializeToString())) == record


@pytest.mark.parametrize("kind", SENT)
def test_every_other_artifact_has_one(kind: ArtifactKind) -> None:
    sent = ArtifactRef(kind, "0" * 64, 1)
    assert wire.ref_from_pb(wire.ref_to_pb(sent)) == sent


@pytest.mark.parametrize("kind", NEVER_SENT)
def test_what_must_not_leave_the_coordinator_has_no_form_on_the_wire(kind: ArtifactKind) -> None:
    with pytest.raises(ValueError, match="ARTIFACT_KIND_"):
        wire.ref_to_pb(ArtifactRef(kind, "0" * 64, 1))


GOOD_REF = types_pb2.ArtifactRef(kind=types_pb2.ARTIFACT_KIND_ADAPTER, sha256="a" * 64, size=1)


GOOD_TASK = types_pb2.TaskSpec(kind=types_pb2.TASK_KIND_CAUSAL_LM)


def train_task(**fields: Any) -> federation_pb2.WatchTasksResponse:
    """A task that is sound but for `fields`."""
    train = federation_pb2.TrainTask(
        sub_model=types_pb2.SubModel(base=GOOD_REF), adapter=GOOD_REF, zero_rule=types_pb2.ZERO_RULE_NEAR_ZERO
    )
    return federation_pb2.WatchTasksResponse(train=altered(train, **fields))


def altered(message: Message, **fields: Any) -> Any:
    """A copy of the message with other values in some fields."""
    copy = type(message)()
    copy.CopyFrom(message)
    for field, value in fields.items():
        setattr(copy, field, value)
    return copy


@pytest.mark.parametrize(
    "bad", ["x", "00-" + "a" * 32, "00-" + "A" * 32 + "-" + "b" * 16 + "-01", "a" * 100_000]
)
def test_a_tasks_trace_is_taken_along_and_one_that_is_malformed_is_dropped(bad: str) -> None:
    good = f"00-{'a' * 32}-{'b' * 16}-01"
    for told, kept in ((good, good), (bad, ""), (f"{good}\n", "")):
        received = wire.task_from_pb(train_task(traceparent=told))
        assert isinstance(received, TrainTask)
        assert received.traceparent == kept
        assert wire.task_to_pb(received).train.traceparent == kept


@pytest.mark.parametrize(
    "bad", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "../" + "a" * 61]
)
def test_a_digest_is_64_lower_case_hexadecimal_digits(bad: str) -> None:
    header = federation_pb2.UpdateHeader(adapter_sha256="a" * 64, sha256="b" * 64)
    wire.header_from_pb(header)
    for convert in (
        lambda: wire.ref_from_pb(altered(GOOD_REF, sha256=bad)),
        lambda: wire.header_from_pb(altered(header, sha256=bad)),
        lambda: wire.header_from_pb(altered(header, adapter_sha256=bad)),
    ):
        with pytest.raises(BadMessage, match="64 lower-case hexadecimal"):
            convert()


@pytest.mark.parametrize("number", [0, 99])
@pytest.mark.parametrize(
    ("convert", "told"),
    [
        (lambda n: wire.ref_from_pb(altered(GOOD_REF, kind=n)), "ArtifactKind"),
        (lambda n: wire.progress_from_pb(types_pb2.Progress(activity=n)), "Activity"),
        (lambda n: admin_wire.status_from_pb(admin_pb2.GetStatusResponse(phase=n)), "Phase"),
        (
            lambda n: wire.run_spec_from_pb(
                types_pb2.RunSpec(task=GOOD_TASK, adapter=types_pb2.AdapterSpec(targets=n))
            ),
            "AdapterTargets",
        ),
        (lambda n: wire.run_spec_from_pb(types_pb2.RunSpec(task=altered(GOOD_TASK, kind=n))), "TaskKind"),
        (
            lambda n: admin_wire.status_from_pb(
                admin_pb2.GetStatusResponse(phase=types_pb2.PHASE_WAITING, task=n)
            ),
            "TaskKind",
        ),
        (lambda n: wire.task_from_pb(train_task(zero_rule=n)), "ZeroRule"),
    ],
    ids=["kind", "activity", "phase", "targets", "task", "status", "zero rule"],
)
def test_an_enum_value_not_known_here_is_a_bad_message(
    convert: Callable[[int], Any], told: str, number: int
) -> None:
    with pytest.raises(BadMessage, match=f"{told} {number} is not known"):
        convert(number)


def test_a_coordinator_from_before_int8_sends_plain_weights_and_a_later_one_may_know_more() -> None:
    message = types_pb2.RunSpec(
        task=GOOD_TASK, adapter=types_pb2.AdapterSpec(targets=types_pb2.ADAPTER_TARGETS_ATTENTION)
    )
    assert wire.run_spec_from_pb(message).quantization is Quantization.NONE
    message.quantization = 99  # type: ignore[assignment]
    with pytest.raises(BadMessage, match="Quantization 99 is not known; upgrade this side"):
        wire.run_spec_from_pb(message)


@pytest.mark.parametrize("bad", ["", ".", "..", "-a", "a/b", "a b", "a\n", "ä", "a" * 65, "a\\b", "a\0"])
def test_a_worker_name_can_do_no_harm_in_logs_and_file_names(bad: str) -> None:
    with pytest.raises(BadMessage, match="worker name"):
        wire.worker_name(bad)
    with pytest.raises(BadMessage, match="worker name"):
        wire.join_request_from_pb(federation_pb2.JoinRequest(worker=bad, examples=1))


def test_a_task_of_no_kind_is_a_bad_message() -> None:
    with pytest.raises(BadMessage, match="kind not known here"):
        wire.task_from_pb(federation_pb2.WatchTasksResponse())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unit", 0),
        ("unit", 9),
        ("epsilon", 0.0),
        ("epsilon", math.nan),
        ("epsilon", math.inf),
        ("delta", 0.0),
        ("delta", 1.0),
        ("clip", -1.0),
        ("batch_size", 0),
        ("rounds", 0),
        # By example each worker finds its own.
        ("noise", 1.0),
        ("noise", math.nan),
    ],
)
def test_a_promise_of_privacy_that_cannot_be_is_a_bad_message(field: str, value: float) -> None:
    message = dp_to_pb(DpSpec(DpUnit.EXAMPLE, 8.0, 1e-5, 1.0, 64, 5))
    assert message is not None
    dp_from_pb(message)
    setattr(message, field, value)
    with pytest.raises(BadMessage):
        dp_from_pb(message)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.inf, math.nan])
def test_a_promise_to_workers_names_its_noise(noise: float) -> None:
    message = dp_to_pb(DpSpec(DpUnit.WORKER, 8.0, 1e-5, 1.0, 64, 5, 2.0))
    assert message is not None and dp_from_pb(message).noise == 2.0
    message.noise = noise
    with pytest.raises(BadMessage, match="noise must be > 0 by worker"):
        dp_from_pb(message)


def test_a_message_that_lacks_a_reference_is_bad() -> None:
    with pytest.raises(BadMessage):
        wire.task_from_pb(federation_pb2.WatchTasksResponse(train=federation_pb2.TrainTask(round=1)))


def test_fields_that_came_later_keep_what_they_meant_when_left_out() -> None:
    """Defaults of records are protobuf's own: FedAvg, AdamW, nothing frozen, no threshold."""
    old = TrainingSpec(1, 16, 2e-3, 5e-3, 0.01, 1.0)
    run = RunSpec("r", TaskSpec(TaskKind.CAUSAL_LM, (), 8, False), LORA, old, 1)
    message = wire.run_spec_to_pb(run)
    for name in ("proximal", "optimizer", "momentum", "neuron_learning_rate"):
        message.training.ClearField(name)
    message.adapter.ClearField("freeze_a")
    assert wire.run_spec_from_pb(message) == run


def test_a_gaps_layers_keep_their_figures_apart() -> None:
    layer = LayerGap(3, 0.1, 0.2, 0.3, 0.4, 0.5)
    whole = GradientGap(7, 0.6, 0.7, 0.8, (layer, replace(layer, layer=4)))
    status = RunStatus("r", Phase.TRAINING, 7, 9, "", 0, 0, (), (), (whole,), None, "", "")
    message = admin_wire.status_to_pb(status)
    pb = message.gaps[0].layers[0]
    assert (pb.cosine, pb.norm_ratio) == (0.1, 0.2)
    assert (pb.gradient_difference, pb.output_difference, pb.weight_difference) == (0.3, 0.4, 0.5)
    assert (message.gaps[0].cosine, message.gaps[0].norm_ratio, message.gaps[0].drift) == (0.6, 0.7, 0.8)
    assert admin_wire.status_from_pb(message).gaps == (whole,)


def test_a_status_without_models_stays_without() -> None:
    bare = RunStatus("r", Phase.BUILDING, 0, 1, "", 0, 0, (), (), (), None, "", "")
    assert admin_wire.status_from_pb(admin_wire.status_to_pb(bare)).models is None
    facts = ModelFacts(0, 0, 0, 0, 0, 0)
    zeros = dataclasses.replace(bare, models=facts)
    assert admin_wire.status_from_pb(admin_wire.status_to_pb(zeros)).models == facts


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_figures_that_are_not_finite_are_no_fault_of_the_protocol(value: float) -> None:
    """A worker may come to them; what they mean for its update is judged with the update."""
    header = UpdateHeader("s", 1, "0" * 64, 1, "0" * 64, 1, value, value)
    message = wire.header_to_pb(header)
    assert wire.header_to_pb(wire.header_from_pb(message)).SerializeToString() == message.SerializeToString()
    progress = wire.progress_to_pb(Progress(Activity.TRAINING, 1, 1, 2, value))
    assert str(wire.progress_from_pb(progress).loss) == str(value)


def test_more_steps_than_a_message_can_hold_are_told_as_the_most() -> None:
    told = wire.progress_from_pb(wire.progress_to_pb(Progress(Activity.TRAINING, 1, 3, 10**12)))
    assert (told.step, told.steps) == (3, 2**32 - 1)


@pytest.mark.parametrize("key", ["adapter.rank", "training.epochs", "training.batch_size", "task.max_length"])
def test_what_a_run_can_be_set_to_can_be_sent(tmp_path: Path, key: str) -> None:
    store = Store(tmp_path)
    run = wire.run_spec_to_pb(context(store, {key: 2**32 - 1}).spec)
    assert str(2**32 - 1) in str(run)
    with pytest.raises(ConfigError, match=key):
        context(store, {key: 2**32})
    store.close()


def test_what_a_worker_says_for_people_is_one_short_line() -> None:
    told = wire.progress_to_pb(Progress(trouble="a\nb\tc\x1b[31m " + "ä" * 10_000))
    trouble = wire.progress_from_pb(told).trouble
    assert trouble.startswith("a b c [31m ää") and len(trouble) == 300 and trouble.endswith("…")
