"""Which protocol is spoken, and what a run asks of its workers that older ones do not know."""

from common.errors import ProtocolMismatch
from common.protocol import (
    CLASSES_SINCE,
    CONVERSATIONS_SINCE,
    DP_SINCE,
    INT8_SINCE,
    LABELS_FILE_SINCE,
    NEURONS_SINCE,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    SECURE_SINCE,
    SGD_SINCE,
    TARGETS_SINCE,
)
from common.quantization import Quantization
from common.records import JoinRequest, LocalOptimizer, RunSpec
from common.run_offers import FindRequest
from common.task_forms import FORMS


def require_protocol(run: RunSpec, newest: int) -> None:
    """Raises ProtocolMismatch when a worker whose newest protocol is `newest` cannot take part in the run."""
    kind = run.task.kind
    weighs = run.asks_classes or bool(run.training.class_weights)
    needs = (
        (run.task.labels_file is not None, LABELS_FILE_SINCE, "this run's classes are too many for {}"),
        (True, FORMS[kind].since, f"this run is for {kind}, which {{}} does not know"),
        (
            run.training.optimizer is LocalOptimizer.SGD,
            SGD_SINCE,
            "this run's workers train by SGD, which {} does not know",
        ),
        (
            run.adapter.targets.neurons,
            NEURONS_SINCE,
            "this run's workers tune FFN neurons in full, which {} does not know",
        ),
        (
            run.task.conversations,
            CONVERSATIONS_SINCE,
            "this run's workers learn the answers of conversations alone, which {} does not know",
        ),
        (run.secure is not None, SECURE_SINCE, "this run sums masked updates, which {} does not know"),
        (
            run.asks_targets,
            TARGETS_SINCE,
            "this run weighs workers by their target tokens, which {} does not tell "
            '(its owner may set aggregation.weights = "examples")',
        ),
        (
            run.quantization is Quantization.INT8,
            INT8_SINCE,
            "this run's sub-FM is sent as int8, which {} does not know",
        ),
        (
            run.dp is not None,
            DP_SINCE,
            "this run's workers add noise for differential privacy, which {} does not know",
        ),
        (weighs, CLASSES_SINCE, "this run asks for workers' classes, which {} does not know"),
    )
    for asked, since, told in needs:
        if asked and newest < since:
            raise ProtocolMismatch(f"{told.format(f'protocol {newest}')}: upgrade the worker")


def negotiated(request: JoinRequest | FindRequest) -> int:
    """The newest protocol version that both sides speak. Raises ProtocolMismatch."""
    version = min(PROTOCOL_MAX, request.protocol_max)
    if version >= max(PROTOCOL_MIN, request.protocol_min):
        return version
    older = "coordinator" if request.protocol_min > PROTOCOL_MAX else "worker"
    raise ProtocolMismatch(
        f"coordinator speaks protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, worker "
        f"{request.protocol_min} to {request.protocol_max}: upgrade the {older}"
    )
