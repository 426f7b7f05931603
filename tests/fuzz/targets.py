"""What is fuzzed: every decoder of bytes from the other side. Each takes bytes, and may only refuse them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fedpft.v1 import federation_pb2, runs_pb2, secure_pb2
from google.protobuf.message import DecodeError

from common.errors import BadMessage, BadScores, BadUpdate, ConfigError
from common.hosted_runs import RunEntry, Submission
from common.model.scores import require_sound
from common.private_task import DpSpec, DpUnit
from common.records import (
    Activity,
    AdapterSpec,
    AdapterTargets,
    ArtifactKind,
    ArtifactRef,
    Chunk,
    ClassCounts,
    EvaluateTask,
    JoinReply,
    JoinRequest,
    Progress,
    RunSpec,
    ScoreSums,
    SubmittedScores,
    SubModelRef,
    TaskKind,
    TaskSpec,
    TrainingSpec,
    TrainTask,
    UpdateHeader,
)
from common.run_offers import Construction, FindRequest, RunTerms
from common.storage.tensor_header import read_header
from common.storage.tensors import TensorFile, to_bytes
from common.transport import class_wire, offer_wire, runs_wire, score_wire, secure_wire, wire
from common.transport.chunk_messages import decode_download, decode_submission
from tests.common.secagg import secure_examples

Target = Callable[[bytes], None]

_REF = ArtifactRef(ArtifactKind.ADAPTER, "ab" * 32, 1234)
_RUN = RunSpec(
    "run",
    TaskSpec(TaskKind.TEXT_CLASSIFICATION, ("no", "yes"), 16, False),
    AdapterSpec(AdapterTargets.ATTENTION, 8, 32.0, 0.1),
    TrainingSpec(1, 16, 2e-3, 5e-3, 0.01, 1.0),
    7,
    dp=DpSpec(DpUnit.EXAMPLE, 8.0, 1e-5, 1.0, 64, 5),
    terms=RunTerms(5, Construction.FULL, "admin/owner", "spring"),
)
_TASK = TrainTask(3, SubModelRef("{}", (64, 16), _REF, (_REF,), (_REF,)), _REF, 1.0, (1,), 60.0, 1)
_UPDATE = UpdateHeader("session", 1, "ab" * 32, 99, "cd" * 32, 5, 0.5, 1.0)

_EVALUATION = EvaluateTask(3, _TASK.sub_model, _REF, 60.0, 2)
_SCORES = ScoreSums(2, 2, 1, 0.5, (1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 1, 0))


def judge_scores(m: Any) -> None:
    """Decoded, and judged as a coordinator judges them."""
    told = score_wire.scores_from_pb(m)
    try:
        require_sound(told.scores, told.scores.examples, TaskKind.TEXT_CLASSIFICATION, ("no", "yes"))
    except BadScores:
        return


_SAID_IN = (
    secure_pb2.OfferKeysRequest,
    secure_pb2.OfferSharesRequest,
    secure_pb2.EndorseSurvivorsRequest,
    secure_pb2.OpenSharesRequest,
)

# Both directions: what a coordinator decodes from workers, and a worker from its coordinator.


def submitted(message: Any) -> object:
    """What a person may have given is refused as their mistake."""
    try:
        return runs_wire.submission_from_pb(message)
    except ConfigError:
        return None


_DECODERS: list[tuple[Any, Callable[[Any], object], Any]] = [
    (
        runs_pb2.SubmitRunRequest,
        submitted,
        runs_wire.submission_to_pb(Submission("0f" * 8, "[run]", ("rounds.count=3",), 1, "label")),
    ),
    (
        runs_pb2.ListRunsResponse,
        runs_wire.entry_from_pb,
        runs_wire.entry_to_pb(RunEntry("r", "l", 1, "admin/a", 1.0)),
    ),
    (
        federation_pb2.JoinRequest,
        wire.join_request_from_pb,
        wire.join_request_to_pb(JoinRequest("w", 1, 2, "0.1", 5)),
    ),
    (
        federation_pb2.JoinResponse,
        wire.join_reply_from_pb,
        wire.join_reply_to_pb(JoinReply("token", 2, _RUN, 5.0)),
    ),
    (
        federation_pb2.FindRunRequest,
        offer_wire.find_request_from_pb,
        offer_wire.find_request_to_pb(FindRequest("w", 1, 7, "0.1", "a1b2")),
    ),
    (federation_pb2.FindRunResponse, offer_wire.found_from_pb, offer_wire.found_to_pb(_RUN)),
    (
        federation_pb2.DeclineRunRequest,
        offer_wire.decline_from_pb,
        offer_wire.decline_to_pb("w", "a1b2", "too many rounds"),
    ),
    (
        federation_pb2.TellClassesRequest,
        class_wire.class_counts_from_pb,
        class_wire.class_counts_to_pb(ClassCounts("w", 5, {"no": 2, "yes": 3})),
    ),
    (federation_pb2.WatchTasksResponse, wire.task_from_pb, wire.task_to_pb(_TASK)),
    (
        federation_pb2.HeartbeatRequest,
        lambda m: wire.progress_from_pb(m.progress),
        federation_pb2.HeartbeatRequest(
            session="token", progress=wire.progress_to_pb(Progress(Activity.TRAINING, 1, 2, 3, 0.5))
        ),
    ),
    (
        federation_pb2.DescribeRunRequest,
        lambda m: wire.worker_name(m.worker),
        federation_pb2.DescribeRunRequest(worker="w"),
    ),
    (
        federation_pb2.DescribeRunResponse,
        lambda m: wire.run_spec_from_pb(m.run),
        federation_pb2.DescribeRunResponse(run=wire.run_spec_to_pb(_RUN)),
    ),
    (
        federation_pb2.OfferUpdateRequest,
        lambda m: wire.header_from_pb(m.header),
        federation_pb2.OfferUpdateRequest(header=wire.header_to_pb(_UPDATE)),
    ),
    (
        federation_pb2.SubmitScoresRequest,
        judge_scores,
        score_wire.scores_to_pb(SubmittedScores("session", 1, "ab" * 32, _SCORES)),
    ),
    (federation_pb2.WatchTasksResponse, wire.task_from_pb, wire.task_to_pb(_EVALUATION)),
    *(
        (message, lambda m: secure_wire.said_from_pb(m, "w"), secure_wire.said_to_pb(said)[1])
        for message, said in zip(_SAID_IN, secure_examples.SAID, strict=True)
    ),
    *(
        (federation_pb2.WatchTasksResponse, wire.task_from_pb, secure_wire.news_to_pb(news))
        for news in secure_examples.NEWS
    ),
    (
        federation_pb2.WatchTasksResponse,
        wire.task_from_pb,
        wire.task_to_pb(replace(_TASK, secure=secure_examples.TASK)),
    ),
    (
        federation_pb2.JoinResponse,
        wire.join_reply_from_pb,
        wire.join_reply_to_pb(JoinReply("token", 6, replace(_RUN, secure=secure_examples.SPEC), 5.0)),
    ),
    (
        federation_pb2.OfferUpdateRequest,
        lambda m: wire.header_from_pb(m.header),
        federation_pb2.OfferUpdateRequest(
            header=wire.header_to_pb(replace(_UPDATE, attempt=2, context=b"c" * 32))
        ),
    ),
    (
        federation_pb2.SubmitUpdateRequest,
        lambda m: wire.chunk_from_pb(m.chunk) if m.WhichOneof("part") == "chunk" else m.header,
        federation_pb2.SubmitUpdateRequest(chunk=wire.chunk_to_pb(Chunk(0, bytes(40)))),
    ),
    (
        federation_pb2.DownloadArtifactResponse,
        lambda m: wire.chunk_from_pb(m.chunk),
        federation_pb2.DownloadArtifactResponse(chunk=wire.chunk_to_pb(Chunk(7, b"content"))),
    ),
]


_FAST: dict[Any, Any] = {
    federation_pb2.SubmitUpdateRequest: decode_submission,
    federation_pb2.DownloadArtifactResponse: decode_download,
}


def decode_message(content: bytes) -> None:
    """The first byte says which message the others are."""
    if not content:
        return
    message, decode, _ = _DECODERS[content[0] % len(_DECODERS)]
    try:
        parsed = message.FromString(content[1:])
        if fast := _FAST.get(message):
            found = fast(content[1:])
            # What takes no copy of a chunk must see what protobuf sees.
            assert (message(chunk=wire.chunk_to_pb(found)) if isinstance(found, Chunk) else found) == parsed
        decode(parsed)
    except (DecodeError, BadMessage):
        return


def judge_header(content: bytes) -> None:
    """As if the bytes were a whole file; what passes fills the file exactly."""
    try:
        read_header(content, len(content))
    except BadUpdate:
        return


def opener(folder: Path) -> Target:
    """Judges, and reads all tensors of a file that passes with the library itself."""
    path = folder / "fuzzed"

    def open_file(content: bytes) -> None:
        try:
            expected = read_header(content, len(content))
        except BadUpdate:
            return
        # What our check lets through the library must take, and see alike.
        path.write_bytes(content)
        found = {name: (tuple(t.shape), t.dtype) for name, t in TensorFile.foreign(path).items()}
        assert found == {name: (spec.shape, spec.dtype) for name, spec in expected.items()}

    return open_file


def message_seeds() -> list[bytes]:
    """A valid message of every kind."""
    return [bytes([i]) + whole.SerializeToString() for i, (_, _, whole) in enumerate(_DECODERS)]


def header_seeds() -> list[bytes]:
    """Valid files, and fragments that matter to the format."""
    files = [
        to_bytes({}),
        to_bytes({"x": torch.zeros(2, 3)}),
        to_bytes({"x": torch.zeros(2, dtype=torch.int64), "delta.y": torch.zeros((), dtype=torch.bool)}),
        to_bytes({f"layer.{i}.weight": torch.zeros(i, dtype=torch.bfloat16) for i in range(8)}),
    ]
    odd = {
        "x": {"dtype": "F32", "shape": [1e308, -1], "data_offsets": [0, 2**70]},
        "__metadata__": {"a": "b"},
    }
    text = json.dumps(odd).encode()
    return [*files, len(text).to_bytes(8, "little") + text]
