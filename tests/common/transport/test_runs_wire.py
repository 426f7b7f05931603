"""Submissions and runs on the wire."""

from dataclasses import replace

import pytest
from fedpft.v1 import runs_pb2

from common.errors import BadMessage, ConfigError, FedPftError
from common.hosted_runs import RunEntry, RunFacts, RunState, Submission
from common.transport import runs_wire

SUBMISSION = Submission("0f" * 8, "[run]\n", ("rounds.count=3",), -2, "for a test")
FACTS = RunFacts("training", 1, 3, 2, "accuracy 0.5", 4.5)
ENTRY = RunEntry("r", "l", 3, "admin/a", 1.0, RunState.CANCELLED, "why", 2.0, 3.0, FACTS)


def test_a_submission_arrives_as_it_was_sent() -> None:
    assert runs_wire.submission_from_pb(runs_wire.submission_to_pb(SUBMISSION)) == SUBMISSION


@pytest.mark.parametrize("state", RunState)
def test_a_run_arrives_as_it_was_told(state: RunState) -> None:
    entry = replace(ENTRY, state=state)
    assert runs_wire.entry_from_pb(runs_wire.entry_to_pb(entry)) == entry


@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        ({"request": ""}, BadMessage, "16 to 64 hexadecimal digits"),
        ({"request": "../../../../../x"}, BadMessage, "16 to 64 hexadecimal digits"),
        ({"configuration": "x" * 600_000}, BadMessage, "at most 512 KiB"),
        ({"settings": ("a.b=1",) * 201}, BadMessage, "200 settings"),
        ({"priority": 2_000_000}, ConfigError, "priority must be from -1000000 to 1000000, got 2000000"),
        ({"label": "x" * 101}, ConfigError, "at most 100 characters, got 101"),
    ],
)
def test_a_submission_beyond_the_bounds_is_refused(
    changed: dict[str, object], error: type[FedPftError], told: str
) -> None:
    message = runs_wire.submission_to_pb(replace(SUBMISSION, **changed))  # type: ignore[arg-type]
    with pytest.raises(error, match=told):
        runs_wire.submission_from_pb(message)


def test_a_label_is_one_line() -> None:
    message = runs_wire.submission_to_pb(replace(SUBMISSION, label="two\nlines\x1b[0m"))
    assert runs_wire.submission_from_pb(message).label == "two lines [0m"


def test_a_state_that_is_not_known_is_refused() -> None:
    with pytest.raises(BadMessage, match="RunState 0 is not known"):
        runs_wire.entry_from_pb(runs_pb2.ListRunsResponse(run="r"))
