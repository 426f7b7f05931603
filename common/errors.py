"""Every error that a user or a peer can meet.

`str(error)` is one line that says what is wrong, where, and what to do. `common.transport.rpc` maps each
class to a gRPC status, so that the class survives the wire.
"""


class FedPftError(Exception):
    """Base of all errors that are answered with one line instead of a traceback."""


# What a user can get wrong.


class ConfigError(FedPftError):
    """A configuration file or option breaks a rule."""


class DataError(FedPftError):
    """A data file is missing, empty, or not what the task needs."""


class ModelError(FedPftError):
    """A model cannot be found or loaded."""


class UnsupportedFamily(ModelError):
    """The model's architecture is not in the registry of families."""


class AddressError(FedPftError):
    """An address cannot be used: taken, malformed, or not allowed without TLS."""


class CertificateError(FedPftError):
    """A certificate, its key or a list of revoked ones is missing, broken, or does not fit."""


# What a run can come to.


class RunFailed(FedPftError):
    """The run cannot reach its end."""


class StoreError(FedPftError):
    """The run's directory holds something unexpected, or cannot be written."""


class Stopped(FedPftError):
    """The user asked for the end; not a failure."""


# What one side can hold against the other.


class Unreachable(FedPftError):
    """The other side does not answer."""


class UnknownHost(Unreachable):
    """The other side's name has no address here."""


class WrongService(Unreachable):
    """What answers at the address is something else."""


class ProtocolMismatch(FedPftError):
    """No protocol version is common to both sides."""


class NotAllowed(FedPftError):
    """The caller's certificate does not give it the right to this."""


class AgainstPolicy(NotAllowed):
    """The owner of a worker's data does not want such a run; the text says nothing of the data."""


class BudgetSpent(NotAllowed):
    """To train on these data any further would tell more of them than is promised, or allowed."""


class TooMany(FedPftError):
    """The caller asks for more at once, or more often, than the other side allows; less or later may pass."""


class BadMessage(FedPftError):
    """A message breaks a rule of the protocol."""


class UnknownSession(FedPftError):
    """The session is not known, for instance after the coordinator restarted: join again."""


class SessionReplaced(FedPftError):
    """Another worker joined under the same name."""


class UnknownRun(FedPftError):
    """The coordinator does not hold the run that a call is about."""


class ClassesWanted(FedPftError):
    """The run has to know the worker's classes before it may join."""


class NameTaken(FedPftError):
    """Another process is at work under the worker's name."""


class UnknownArtifact(FedPftError):
    """No artifact with this digest has been published."""


class BrokenTransfer(FedPftError):
    """Chunks are out of order, too many or too few."""


class BadDigest(FedPftError):
    """Content does not match its SHA-256."""


class BadUpdate(FedPftError):
    """An update is not of the form that the round asked for."""


class BadScores(FedPftError):
    """Scores are not what a worker with its examples can have, or not of the form that the task asked for."""


class SecureRefused(FedPftError):
    """A worker refuses to take part in a secure round: what it was told breaks a rule, or its own limits."""

    def __init__(self, message: str, blamed: str | None = None) -> None:
        """`blamed` is the worker whose doing it is, where that is known."""
        super().__init__(message)
        self.blamed = blamed


class BadShare(FedPftError):
    """Keys, shares or signatures that a worker offered to a secure round do not fit."""

    def __init__(self, message: str, blamed: str | None = None) -> None:
        """`blamed` is the worker whose doing it is, where that is known."""
        super().__init__(message)
        self.blamed = blamed


class StaleRound(FedPftError):
    """The round named is over, and a later one is under way; or none is yet."""


class CannotTrain(FedPftError):
    """A worker cannot do a round's task, such as when its training diverges; the next one it may."""


class LateUpdate(StaleRound):
    """The round named closed while the update was trained or on its way."""


class UnknownRound(StaleRound):
    """The run has not come to the round named."""


class NotSelected(StaleRound):
    """The open round does not expect this worker."""


class PeerError(FedPftError):
    """The other side answered with an error of no class known here."""
