"""What a run asks of its workers that older ones do not know."""

from common.errors import ProtocolMismatch
from common.protocol import CLASSES_SINCE, CONVERSATIONS_SINCE, LABELS_FILE_SINCE, NEURONS_SINCE, SGD_SINCE
from common.records import LocalOptimizer, RunSpec
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
        (weighs, CLASSES_SINCE, "this run asks for workers' classes, which {} does not know"),
    )
    for asked, since, told in needs:
        if asked and newest < since:
            raise ProtocolMismatch(f"{told.format(f'protocol {newest}')}: upgrade the worker")
