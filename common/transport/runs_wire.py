"""Protobuf ↔ records, for what admins and a coordinator of many runs tell each other."""

import re
from dataclasses import asdict

from fedpft.v1 import runs_pb2

from common.errors import BadMessage, ConfigError
from common.hosted_runs import RunEntry, RunFacts, RunState, Submission
from common.transport.enums import enum_from_pb
from common.transport.texts import one_line

# Larger than any configuration that people write: labels by the thousand go into it.
_MOST_CONFIGURATION = 512 * 1024
_MOST_SETTINGS = 200
_MOST_PRIORITY = 1_000_000
_MOST_LABEL = 100
_REQUEST = re.compile(r"[0-9a-f]{16,64}")


def submission_to_pb(s: Submission) -> runs_pb2.SubmitRunRequest:
    return runs_pb2.SubmitRunRequest(**asdict(s))


def submission_from_pb(m: runs_pb2.SubmitRunRequest) -> Submission:
    """Raises BadMessage, and ConfigError for what a person may have given."""
    if not _REQUEST.fullmatch(m.request):
        raise BadMessage("request must be 16 to 64 hexadecimal digits")
    if len(m.configuration.encode()) > _MOST_CONFIGURATION or len(m.settings) > _MOST_SETTINGS:
        raise BadMessage(
            f"a configuration must have at most {_MOST_CONFIGURATION // 1024} KiB, and "
            f"{_MOST_SETTINGS} settings"
        )
    if abs(m.priority) > _MOST_PRIORITY:
        raise ConfigError(f"priority must be from -{_MOST_PRIORITY} to {_MOST_PRIORITY}, got {m.priority}")
    if len(m.label) > _MOST_LABEL:
        raise ConfigError(f"a run's label must have at most {_MOST_LABEL} characters, got {len(m.label)}")
    return Submission(m.request, m.configuration, tuple(m.settings), m.priority, one_line(m.label))


def entry_to_pb(e: RunEntry) -> runs_pb2.ListRunsResponse:
    return runs_pb2.ListRunsResponse(
        run=e.run,
        label=e.label,
        priority=e.priority,
        submitter=e.submitter,
        state=runs_pb2.RunState.Value(f"RUN_STATE_{e.state.name}"),
        reason=e.reason,
        submitted=e.submitted,
        began=e.began,
        ended=e.ended,
        phase=e.facts.phase,
        round=e.facts.round,
        rounds=e.facts.rounds,
        workers=e.facts.workers,
        score=e.facts.score,
        seconds_left=e.facts.seconds_left,
    )


def entry_from_pb(m: runs_pb2.ListRunsResponse) -> RunEntry:
    """Raises BadMessage."""
    return RunEntry(
        m.run,
        m.label,
        m.priority,
        m.submitter,
        m.submitted,
        enum_from_pb(RunState, runs_pb2.RunState, "RUN_STATE_", m.state),
        m.reason,
        m.began,
        m.ended,
        RunFacts(m.phase, m.round, m.rounds, m.workers, m.score, m.seconds_left),
    )
