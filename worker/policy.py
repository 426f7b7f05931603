"""policy.toml: what the owner of a worker's data allows, of every run. Pure, but for reading the file."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from common.address import Address
from common.config.file import commented, load_section
from common.config.section import Positive, Section
from common.errors import AddressError, AgainstPolicy
from common.private_task import DpUnit
from common.records import RunSpec, TaskKind
from common.run_offers import Construction
from worker.quiet import Window, parse_window


class WhoSection(Section):
    """Whose runs this worker takes part in."""

    coordinators: tuple[str, ...] | None = None
    """Coordinators as HOST:PORT, which --coordinator names and TLS proves. Unset: any."""
    admins: tuple[str, ...] | None = None
    """Who may have submitted the run, as in certificates: "admin/NAME"; "" stands for a run that the
    coordinator's own configuration file began. Unset: anybody."""

    @field_validator("coordinators")
    @classmethod
    def _addresses(cls, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for text in given or ():
            try:
                Address.of_peer(text)
            except AddressError as error:
                raise ValueError(str(error)) from None
        return given

    @field_validator("admins")
    @classmethod
    def _identities(cls, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for text in given or ():
            if text and not text.startswith("admin/"):
                raise ValueError(f'must be "admin/NAME" or "", got {text!r}')
        return given


class TaskSection(Section):
    """What the model may learn from these data."""

    kinds: tuple[TaskKind, ...] | None = None
    """Kinds of task, as run.toml's task.kind. Unset: any that the data are for."""
    label_sets: tuple[tuple[str, ...], ...] | None = None
    """Sets of labels: the run's, in any order, must be one of them; without labels it has []. Unset: any."""
    forbidden: tuple[Construction, ...] = ()
    """Constructions of the sub-FM that are declined, as run.toml's sub_fm.construction: "full" is the whole
    model, in which most can be learnt by heart, and which takes the most memory."""


class LimitsSection(Section):
    """How much a run may ask for."""

    rounds: Positive | None = None
    """The most rounds of a run."""
    epochs: Positive | None = None
    """The most passes over the data in a round."""
    hours_a_day: Annotated[float, Field(gt=0, le=24)] | None = None
    """Hours of training in all runs, from midnight to midnight; then this worker rests until midnight."""


class PrivacySection(Section):
    """What a run must promise; beside --require-secure, --require-dp and --epsilon, which stay."""

    secure: bool = False
    """Only runs that sum masked updates, so that nobody sees this worker's."""
    unit: DpUnit = DpUnit.NONE
    """"example": only runs under differential privacy of each example; "worker": of this worker as a
    whole."""
    epsilon: Annotated[float, Field(gt=0)] | None = None
    """The most that all runs on the same data together may tell of an example, or of this worker; a run
    without differential privacy, or whose promise is more than is left, is declined."""


class HoursSection(Section):
    """When this worker trains."""

    quiet: tuple[str, ...] = ()
    """Windows of local time without training, such as "22:00-06:00" or "Mon-Fri 08:00-18:00". No run is
    joined then; in a run that was joined before, this worker says so and sits rounds out."""

    @field_validator("quiet")
    @classmethod
    def _windows(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for text in given:
            parse_window(text)
        return given

    @property
    def windows(self) -> tuple[Window, ...]:
        """The same, parsed."""
        return tuple(parse_window(text) for text in self.quiet)


class Policy(Section):
    """The whole file."""

    who: WhoSection = WhoSection()
    """Whose runs this worker takes part in."""
    task: TaskSection = TaskSection()
    """What the model may learn from these data."""
    limits: LimitsSection = LimitsSection()
    """How much a run may ask for."""
    privacy: PrivacySection = PrivacySection()
    """What a run must promise. --require-secure, --require-dp and --epsilon stay beside it."""
    hours: HoursSection = HoursSection()
    """When this worker trains."""

    @property
    def asks_terms(self) -> bool:
        """Whether it goes by what coordinators before protocol 7 do not tell."""
        return self.who.admins is not None or self.limits.rounds is not None or bool(self.task.forbidden)


WRITER = "fedpft worker policy"


def load_policy(path: Path | None) -> Policy:
    """The policy of the file; without one, everything is allowed. Raises ConfigError."""
    return Policy() if path is None else load_section(path, Policy, WRITER)


def example_policy() -> str:
    """A complete commented file to start from, which allows everything."""
    return commented(Policy, "What this worker's owner allows. Every key is here with its default.", {})


def require_allowed(policy: Policy, run: RunSpec, coordinator: str) -> None:
    """Raises AgainstPolicy, with every rule that the run does not fit, for a coordinator at this address."""
    if told := [*_who(policy, run, coordinator), *_what(policy, run), *_promised(policy, run)]:
        raise AgainstPolicy(f"this worker's policy: {'; '.join(told)}")


def _who(policy: Policy, run: RunSpec, coordinator: str) -> list[str]:
    told = []
    allowed, admins = policy.who.coordinators, policy.who.admins
    if allowed is not None and coordinator not in {str(Address.of_peer(text)) for text in allowed}:
        told.append(f"coordinator {coordinator} is not among who.coordinators")
    if policy.asks_terms and run.terms is None:
        told.append("the coordinator is older than the terms of a run, by which this policy goes; upgrade it")
    elif run.terms is not None and admins is not None and run.terms.submitter not in admins:
        submitter = run.terms.submitter or "the coordinator's own configuration file"
        told.append(f"the run was submitted by {submitter}, which is not among who.admins")
    return told


def _what(policy: Policy, run: RunSpec) -> list[str]:
    told = []
    kind, epochs, terms = run.task.kind, run.training.epochs, run.terms
    limits, task = policy.limits, policy.task
    if task.kinds is not None and kind not in task.kinds:
        told.append(f"task {kind} is not among task.kinds")
    # Labels that come as a file, or that workers are asked for, are judged once they are known.
    known = run.task.labels_file is None or run.task.labels
    judged = task.label_sets is not None and known and not run.asks_classes
    if judged and set(run.task.labels) not in map(set, task.label_sets or ()):
        told.append("the run's labels are none of task.label_sets")
    if terms is not None and terms.construction in task.forbidden:
        told.append(f"construction {terms.construction} is among task.forbidden")
    if terms is not None and limits.rounds is not None and terms.rounds > limits.rounds:
        told.append(f"the run has {terms.rounds} rounds, limits.rounds allows {limits.rounds}")
    if limits.epochs is not None and epochs > limits.epochs:
        told.append(f"the run asks for {epochs} epochs a round, limits.epochs allows {limits.epochs}")
    return told


def _promised(policy: Policy, run: RunSpec) -> list[str]:
    told = []
    wanted = policy.privacy
    if wanted.secure and (run.secure is None or not run.secure.signed):
        told.append("the run's coordinator could see this worker's updates, privacy.secure forbids that")
    private = wanted.unit is not DpUnit.NONE or wanted.epsilon is not None
    if private and run.dp is None:
        told.append("the run promises no differential privacy, privacy.unit or privacy.epsilon asks for it")
    if run.dp is not None and wanted.unit not in (DpUnit.NONE, run.dp.unit):
        told.append(
            f"the run promises privacy of each {run.dp.unit}, privacy.unit asks for each {wanted.unit}"
        )
    if run.dp is not None and wanted.epsilon is not None and run.dp.epsilon > wanted.epsilon:
        told.append(f"the run's epsilon is {run.dp.epsilon:g}, privacy.epsilon allows {wanted.epsilon:g}")
    return told
