"""Hand-off of workers' scores from RPC handlers to the loop: judged at the door, on disk before counted."""

from dataclasses import dataclass

from common.errors import BadScores, LateUpdate, NotSelected, StaleRound, UnknownRound
from common.records import ScoreSums, SubmittedScores, TaskKind
from coordinator.federation.rounds import Cannot, Received, RoundPhase, RoundState, Work
from coordinator.federation.turns import Turns
from coordinator.storage.store import Store


@dataclass(frozen=True)
class ExpectedScores:
    """What the open evaluation asks for."""

    adapter_sha256: str
    kind: TaskKind
    labels: tuple[str, ...]


class ScoreInbox:
    """The scores that workers are asked for after a round. Lives on the event loop."""

    def __init__(self, store: Store, turns: Turns) -> None:
        self._store, self._turns = store, turns
        self._expected: ExpectedScores | None = None

    def open(self, state: RoundState, expected: ExpectedScores) -> None:
        """Begin to take scores."""
        self._expected = expected
        self._turns.open(state)

    @property
    def _state(self) -> RoundState | None:
        """The open evaluation, or the last."""
        state = self._turns.state
        return state if state is not None and state.work is Work.SCORES else None

    def joined(self, worker: str, able: bool) -> None:
        """A worker joined, able to score or not: it may have been drawn as another process."""
        if not able and self._state is not None:
            self._turns.note(Cannot(worker, "keeps no examples aside any more"))

    def admit(self, worker: str, examples: int, told: SubmittedScores) -> bool:
        """Judge scores of a worker that keeps so many `examples` aside; False when they are here already.

        Raises StaleRound (LateUpdate, UnknownRound, NotSelected) when they are not waited for, BadScores
        when they cannot be what was asked for.
        """
        if self._store.validations.scores(told.round).get(worker) == told.scores:
            return False
        if worker in self._store.validations.counted(told.round):
            return False
        state = self._require_open(worker, told.round)
        assert self._expected is not None
        if told.adapter_sha256 != self._expected.adapter_sha256:
            raise BadScores(f"the scores are of another adapter than the one after round {state.number}")
        # It brings torchmetrics, which takes a second and more.
        from common.model.scores import require_sound

        require_sound(told.scores, examples, self._expected.kind, self._expected.labels)
        return True

    def _require_open(self, worker: str, number: int) -> RoundState:
        state = self._state
        if state is None:
            raise StaleRound(f"scores after round {number} are not asked for")
        if number > state.number:
            raise UnknownRound(f"the run has not come to round {number}, it is at {state.number}")
        if number < state.number:
            raise StaleRound(f"scores after round {number} are not asked for, those after {state.number} are")
        if state.phase is not RoundPhase.OPEN:
            raise LateUpdate(f"scores after round {number} are not taken any more")
        if worker not in state.selected:
            raise NotSelected(f"worker {worker} was not asked for scores after round {number}")
        return state

    def commit(self, worker: str, number: int, scores: ScoreSums) -> None:
        """Record admitted scores and count them: now a receipt may be given."""
        self._store.validations.commit_scores(number, worker, scores)
        self._turns.note(Received(worker))
