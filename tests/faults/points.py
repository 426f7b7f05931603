"""Every fault point that a complete run passes, as enums: the tests kill at each of them.

A test holds both enums complete: what an undisturbed run passes is what stands here.
"""

from collections.abc import Iterable
from enum import StrEnum
from itertools import product

from common.runtime.fault_points import Point

_DURABLE = (Point.FILE_WRITTEN, Point.FILE_SYNCED, Point.FILE_RENAMED, Point.FOLDER_SYNCED)
_DECIDED = (Point.TRANSACTION_MADE, Point.TRANSACTION_COMMITTED)
_ANSWERED = (Point.CALL_RECEIVED, Point.REPLY_READY, Point.CALL_ENDED)
_CALLED = (Point.CALL_MADE, Point.REPLY_RECEIVED)

_CALLS = (
    "DescribeRun",
    "Join",
    "WatchTasks",
    "Heartbeat",
    "DownloadArtifact",
    "OfferUpdate",
    "SubmitUpdate",
    "SubmitScores",
    "Leave",
)
_SERVED = ("sub_model", "tokenizer", "tokenizer_config", "adapter", "neuron_patch")
_ARTIFACTS = (*_SERVED, "plan", "server_state", "corrected")


def _names(points: Iterable[Point], subjects: Iterable[str]) -> list[str]:
    return [f"{point}/{subject}" for point, subject in product(points, subjects)]


def _members(*groups: list[str]) -> dict[str, str]:
    return {name.upper().replace("/", "__").replace("-", "_"): name for group in groups for name in group}


CoordinatorPoint = StrEnum(
    "CoordinatorPoint",
    _members(
        _names(_DURABLE, (*_ARTIFACTS, "upload", "update")),
        _names(_DURABLE, ("alignment-checkpoint.safetensors", "correction-checkpoint.safetensors")),
        _names(_DURABLE, ("endpoint.json",)),
        # Written aside, to see whether a worker can read them.
        _names(_DURABLE, ("tokenizer.json", "tokenizer_config.json")),
        _names(_DECIDED, (f"artifact-{kind}" for kind in _ARTIFACTS)),
        _names(_DECIDED, ("run", "content", "sub-model", "adapter", "gap", "correction", "evaluation")),
        _names(
            _DECIDED,
            (
                "alignment",
                "outcome",
                "worker",
                "try-opened",
                "update",
                "try-closed",
                "collection",
                "traffic",
                "event",
                "served",
                "validator",
                "validation-opened",
                "scores",
                "validation-closed",
            ),
        ),
        _names(_ANSWERED, _CALLS),
        _names([Point.CHUNK_SENT], _SERVED),
        _names([Point.CHUNK_RECEIVED], ["upload"]),
        _names([Point.FILE_REMOVED], ["update", "adapter", "server_state"]),
        _names([Point.STEP], ["cut", "aligned", "round-opened", "round-closed", "aggregated", "plugged-in"]),
        _names([Point.STEP], ["gap-measured", "re-aligned", "evaluated", "corrected"]),
        _names([Point.STEP], ["validation-opened", "validated"]),
        _names([Point.STEP], ["finishing", "farewell"]),
    ),
)

WorkerPoint = StrEnum(
    "WorkerPoint",
    _members(
        _names(
            _DURABLE,
            (*_SERVED, "tokenizer.json", "tokenizer_config.json", "update", "update-header", "history"),
        ),
        _names(_CALLED, _CALLS),
        _names([Point.CHUNK_RECEIVED], _SERVED),
        _names([Point.CHUNK_SENT], ["update"]),
        _names([Point.STEP], ["task-taken", "fetched", "equipped", "trained-a-step", "trained", "delivered"]),
        _names([Point.STEP], ["evaluation-taken", "scored-a-batch", "scored", "scores-delivered"]),
    ),
)

# Where the second time is another state than the first: in the second round, after an alignment, with a
# server optimiser's state, with a transfer half done.
COORDINATOR_AGAIN = [
    (CoordinatorPoint(name), occurrence)
    for name, occurrence in {
        "file-written/adapter": 3,
        "file-renamed/adapter": 2,
        "file-synced/server_state": 2,
        "file-written/upload": 3,
        "file-renamed/update": 4,
        "file-written/alignment-checkpoint.safetensors": 2,
        "transaction-made/adapter": 3,
        "transaction-committed/adapter": 2,
        "transaction-committed/update": 2,
        "transaction-made/update": 4,
        "transaction-committed/try-closed": 2,
        "transaction-committed/try-opened": 2,
        "transaction-committed/evaluation": 3,
        "transaction-committed/gap": 3,
        "transaction-made/event": 20,
        "chunk-received/upload": 3,
        "chunk-sent/sub_model": 4,
        "chunk-sent/adapter": 7,
        "reply-ready/SubmitUpdate": 4,
        "call-ended/SubmitUpdate": 2,
        "step/aggregated": 2,
        "step/round-closed": 2,
        "step/plugged-in": 2,
        "transaction-committed/scores": 2,
        "transaction-made/scores": 4,
        "transaction-made/validation-closed": 2,
        "transaction-committed/validation-closed": 3,
        "transaction-committed/validation-opened": 2,
        "reply-ready/SubmitScores": 3,
        "step/validated": 3,
    }.items()
]
WORKER_AGAIN = [
    (WorkerPoint(name), occurrence)
    for name, occurrence in {
        "file-written/adapter": 2,
        "file-renamed/update": 2,
        "file-renamed/update-header": 2,
        "chunk-received/sub_model": 2,
        "chunk-received/adapter": 3,
        "chunk-sent/update": 3,
        "call-made/SubmitUpdate": 2,
        "reply-received/SubmitUpdate": 2,
        "step/trained-a-step": 3,
        "step/trained": 2,
        "step/scored": 2,
        "step/evaluation-taken": 3,
        "reply-received/SubmitScores": 3,
    }.items()
]

# Where a machine that goes down loses what a process that dies does not.
VOLATILE = (Point.FILE_WRITTEN, Point.FILE_RENAMED, Point.CHUNK_RECEIVED)


def is_volatile(name: str) -> bool:
    """Whether a power loss there leaves another disk than a kill."""
    return name.partition("/")[0] in VOLATILE
