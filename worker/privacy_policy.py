"""What a worker's owner asks of differential privacy, and what a run may not ask under it."""

from dataclasses import dataclass

from common.errors import AgainstPolicy, BadMessage, NotAllowed
from common.privacy.accounting import require_installed
from common.privacy.gaussian import ROUNDING, divergence, epsilon_at
from common.private_task import DpSpec, DpUnit
from common.records import EvaluateTask, ModelTask, RunSpec, TrainTask


@dataclass(frozen=True)
class PrivacyPolicy:
    """What this worker's owner asks of differential privacy."""

    required: DpUnit = DpUnit.NONE
    """Take part in no run that promises another unit, or none."""
    epsilon: float | None = None
    """How much all runs together may tell of an example of these data, or of this worker, whichever they
    promise; None: what each run promises."""
    named: str = "--epsilon"
    """What sets epsilon."""

    @property
    def asks(self) -> bool:
        """Whether a run without differential privacy is refused."""
        return self.required is not DpUnit.NONE or self.epsilon is not None

    def require_known(self) -> None:
        """Raises NotAllowed: the coordinator cannot say what it promises."""
        raise NotAllowed(
            "the coordinator is older than differential privacy, which --require-dp or --epsilon asks for; "
            "upgrade it"
        )

    def require(self, run: RunSpec, examples: int) -> None:
        """Raises NotAllowed for a run that this worker's owner does not want it to take part in, BadMessage
        for one that promises privacy and asks for what would break it, ConfigError where a package lacks.
        """
        dp = run.dp
        if dp is None:
            if self.asks:
                asked = self.named if self.required is DpUnit.NONE else "--require-dp"
                unit = DpUnit.EXAMPLE if self.required is DpUnit.NONE else self.required
                raise AgainstPolicy(
                    f"the run promises no differential privacy, and {asked} asks for it; ask the run's owner "
                    f'for privacy.dp.unit = "{unit}"'
                )
            return
        if self.required not in (DpUnit.NONE, dp.unit):
            raise AgainstPolicy(
                f"the run promises differential privacy of each {dp.unit}, and --require-dp asks for that of "
                f'each {self.required}; ask the run\'s owner for privacy.dp.unit = "{self.required}"'
            )
        if self.epsilon is not None and dp.epsilon > self.epsilon:
            raise AgainstPolicy(
                f"the run may tell of {_of(dp.unit)} as much as epsilon {dp.epsilon:g}, and {self.named} "
                f"allows {self.epsilon:g}; ask the run's owner for a lower privacy.dp.epsilon"
            )
        if run.asks_classes or run.training.class_weights:
            raise BadMessage("the run promises differential privacy, and asks for workers' classes")
        if run.asks_targets:
            raise BadMessage("the run promises differential privacy, and asks for numbers of target tokens")
        if dp.unit is DpUnit.WORKER:
            _require_by_worker(run, dp)
        else:
            _require_by_example(run, dp, examples)


def _require_by_example(run: RunSpec, dp: DpSpec, examples: int) -> None:
    if dp.delta > 1 / examples:
        raise NotAllowed(
            f"the run's privacy.dp.delta is {dp.delta:g}: with {examples} examples one of them could be "
            f"told outright; ask the run's owner for {1 / examples:.1g} or less"
        )
    if run.adapter.targets.neurons or run.training.checkpointing:
        raise BadMessage(
            "the run promises differential privacy, and trains what has no gradient of each example"
        )
    require_installed()


def _require_by_worker(run: RunSpec, dp: DpSpec) -> None:
    """That the noise which the coordinator speaks of keeps the promise, and that all weigh alike."""
    told = epsilon_at(dp.rounds * divergence([dp.noise]), dp.delta)
    if told > dp.epsilon * ROUNDING:
        raise BadMessage(
            f"the run promises epsilon {dp.epsilon:g}, and its noise of {dp.noise:g} keeps {told:.3g} over "
            f"{dp.rounds} rounds"
        )
    if run.secure is not None and run.secure.by_examples:
        raise BadMessage("the run promises privacy of each worker, and weighs workers by their examples")


def _of(unit: DpUnit) -> str:
    return "this worker" if unit is DpUnit.WORKER else "an example"


def require_private_task(run: RunSpec, task: ModelTask) -> None:
    """Raises BadMessage for a task of a run that promises privacy which would tell of examples without
    noise."""
    if run.dp is None:
        return
    if isinstance(task, EvaluateTask):
        raise BadMessage("the run promises differential privacy, and asks for scores")
    if isinstance(task, TrainTask) and task.apoz_layers:
        raise BadMessage("the run promises differential privacy, and asks for counts of neurons at rest")
