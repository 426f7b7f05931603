"""What a run says of differential privacy."""

from dataclasses import dataclass
from enum import StrEnum


class DpUnit(StrEnum):
    """Whose presence in the data stays in doubt."""

    NONE = "none"
    EXAMPLE = "example"
    WORKER = "worker"


@dataclass(frozen=True)
class DpSpec:
    """What a run promises of each example of a worker, or of each worker as a whole: (`epsilon`, `delta`)
    over `rounds` rounds.

    By example: `clip` is the largest L2 norm of an example's gradient, `batch_size` how many examples a batch
    has on the average. How much noise that takes depends on the worker's number of examples, and only it
    knows; `noise` is 0. By worker: `clip` is the largest norm of an update at first, and `noise` what a
    round's sum has of it, as a multiple of the largest norm; `batch_size` says nothing.
    """

    unit: DpUnit
    epsilon: float
    delta: float
    clip: float
    batch_size: int
    rounds: int
    noise: float = 0.0
