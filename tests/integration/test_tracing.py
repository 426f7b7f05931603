"""A real run whose processes export their spans to a receiver that speaks OTLP."""

import json
from pathlib import Path

import pytest

from tests.integration.federation import Federation, federation
from tests.otlp import Received, Receiver

COORDINATOR, WORKER = "fedpft-coordinator", "fedpft-worker"

# All that a span and its process may tell; a new attribute is to be thought about before it is added here.
ATTRIBUTES = {
    "fedpft.run",
    "fedpft.round",
    "fedpft.worker",
    "fedpft.attempt",
    "rpc.system.name",
    "rpc.method",
}
RESOURCE = {"service.name", "service.version", "service.instance.id"}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Federation, Receiver]:
    """A run of two rounds and two workers, over by now, and what was received."""
    receiver = Receiver()
    settings = {"rounds__workers": 2, "rounds__minimum": 2, "realignment__every": 2}
    with pytest.MonkeyPatch.context() as patch, receiver.serving():
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        with federation(tmp_path_factory.mktemp("traced"), model_folder, **settings) as running:
            address = running.start_coordinator()["address"]
            for number in (1, 2):
                running.start_worker(number, address)
            running.wait()
    return running, receiver


def one(spans: list[Received]) -> Received:
    assert len(spans) == 1, spans
    return spans[0]


def test_a_workers_training_is_in_the_trace_of_the_coordinators_round(
    traced: tuple[Federation, Receiver],
) -> None:
    _, receiver = traced
    for number in (1, 2):
        above = one(receiver.of(COORDINATOR, "round", round=number))
        assert above.parent == ""
        for worker in ("worker-1", "worker-2"):
            task = one(receiver.of(WORKER, "task", round=number, worker=worker))
            assert (task.trace, task.parent, task.instance) == (above.trace, above.span, worker)
            assert 0 < task.seconds < above.seconds
            parts = [s for s in receiver.spans if s.parent == task.span]
            assert [s.name for s in parts] == ["download", "train", "upload"]
            assert sum(s.seconds for s in parts) <= task.seconds
    assert len({s.trace for s in receiver.of(COORDINATOR, "round")}) == 2


def test_calls_are_below_the_part_of_the_task_that_made_them(traced: tuple[Federation, Receiver]) -> None:
    _, receiver = traced
    names = {s.span: s.name for s in receiver.spans}
    calls = [s for s in receiver.spans if s.served]
    assert {(s.service, s.name, names[s.parent]) for s in calls} == {
        (COORDINATOR, "DownloadArtifact", "download"),
        (COORDINATOR, "OfferUpdate", "upload"),
        (COORDINATOR, "SubmitUpdate", "upload"),
    }
    assert len([s for s in calls if s.name == "SubmitUpdate"]) == 4


def test_a_rounds_phases_are_below_it_and_before_it_is_over(traced: tuple[Federation, Receiver]) -> None:
    _, receiver = traced
    phases = {
        number: [
            s.name
            for s in receiver.spans
            if s.service == COORDINATOR and not s.served and s.parent == above.span
        ]
        for number, name in ((0, "build"), (1, "round"), (2, "round"))
        for above in receiver.of(COORDINATOR, name, round=number)
    }
    assert phases == {
        0: ["building", "aligning", "evaluating"],
        # The workers of the first round may take a moment to come.
        1: [*phases[1][: phases[1].index("training")], "training", "aggregating", "evaluating"],
        2: ["training", "aggregating", "evaluating"],
    }
    assert phases[1][0] in ("waiting", "training")


def test_every_span_belongs_to_one_that_was_received_too(traced: tuple[Federation, Receiver]) -> None:
    _, receiver = traced
    known = {s.span for s in receiver.spans}
    assert len(known) == len(receiver.spans)
    assert {s.parent for s in receiver.spans} - known == {""}


def test_log_lines_name_the_trace(traced: tuple[Federation, Receiver]) -> None:
    running, receiver = traced
    traces = {s.attributes["fedpft.round"]: s.trace for s in receiver.of(COORDINATOR, "round")}
    for name, told in (("coordinator", "updates aggregated"), ("worker-1", "receipt for update")):
        lines = [json.loads(line) for line in running.log(name).splitlines()]
        found = {line["round"]: line.get("trace_id") for line in lines if told in line["message"]}
        assert found == traces
        assert "trace_id" not in lines[-1], "the run is over, and its traces are"


def test_spans_tell_names_and_numbers_only(traced: tuple[Federation, Receiver]) -> None:
    running, receiver = traced
    assert {key for s in receiver.spans for key in s.attributes} == ATTRIBUTES
    ours = {key for s in receiver.spans for key in s.resource if not key.startswith("telemetry.sdk.")}
    assert ours == RESOURCE
    told = {str(value) for s in receiver.spans for value in s.attributes.values()}
    run = running.status().run_id
    calls = {"DownloadArtifact", "OfferUpdate", "SubmitUpdate"}
    assert told == {run, "0", "1", "2", "worker-1", "worker-2", "grpc"} | calls
