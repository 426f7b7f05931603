"""What a run says of differential privacy."""

from dataclasses import dataclass
from enum import StrEnum


class DpUnit(StrEnum):
    """Whose presence in the data stays in doubt."""

    NONE = "none"
    EXAMPLE = "example"


@dataclass(frozen=True)
class DpSpec:
    """What a run promises of each example of a worker: (`epsilon`, `delta`) over `rounds` rounds.

    `clip` is the largest L2 norm of an example's gradient, `batch_size` how many examples a batch has on the
    average. How much noise that takes depends on the worker's number of examples, and only it knows.
    """

    unit: DpUnit
    epsilon: float
    delta: float
    clip: float
    batch_size: int
    rounds: int
