"""What ends a round's work on this worker, and need not end the next one's."""

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import BadShare, BadUpdate, CannotTrain, SecureRefused, UnknownArtifact
from common.runtime.compute import out_of_memory


@contextmanager
def as_cannot_train() -> Iterator[None]:
    """What ends this round's work, and need not end the next one's, raised as CannotTrain.

    Its text goes to the coordinator, so it says nothing of the data.
    """
    try:
        yield
    except (SecureRefused, BadShare) as error:
        raise CannotTrain(f"secure aggregation: {error}") from error
    except UnknownArtifact as error:
        raise CannotTrain(f"what the task names cannot be fetched: {error}") from error
    except BadUpdate as error:
        raise CannotTrain(f"what was fetched is not what the task announced: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise CannotTrain(
            "out of memory; end what else uses it, give this worker more or another --device, or have the "
            "owner of the run lower training.batch_size"
        ) from error
