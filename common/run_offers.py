"""What a worker is told of a run before it takes part, and what it answers."""

from dataclasses import dataclass
from enum import StrEnum


class Construction(StrEnum):
    """How the sub-FM comes from the FM: FedPFT's, FedOT's, and FedPETuning's (all of it)."""

    FFN_PRUNING = "ffn-pruning"
    LAYER_DROP = "layer-drop"
    FULL = "full"


@dataclass(frozen=True)
class RunTerms:
    """What a worker's owner may want to know of a run: rounds in all, how the sub-FM comes from the FM, who
    submitted it ("admin/NAME"; "" where a configuration file began it), its name for people ("": none)."""

    rounds: int
    construction: Construction
    submitter: str = ""
    label: str = ""


@dataclass(frozen=True)
class FindRequest:
    """A worker asks for a run. `state` is drawn at random when its process began, and anew when its policy or
    its data changed."""

    worker: str
    protocol_min: int
    protocol_max: int
    software: str
    state: str


@dataclass(frozen=True)
class Declined:
    """A worker that takes no part in a run, and why, as it says; `time` in seconds since 1970."""

    worker: str
    reason: str
    time: float
