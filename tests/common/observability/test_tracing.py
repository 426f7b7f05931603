"""Spans without an endpoint, without packages, with an endpoint that is gone, and from other processes."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from common.errors import BadUpdate
from common.observability import logs, tracing
from tests.otlp import Receiver
from tests.services import ROOT

FOREIGN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def in_a_process(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script that has nothing imported yet."""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """To which this process exports meanwhile."""
    monkeypatch.setattr(logs, "_process", logs.Subject(logs.About()))
    receiver = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    with receiver.serving():
        yield receiver


USE = """
import sys
from common.observability import tracing
with tracing.exporting("fedpft-worker", "a"), tracing.span("task", round=1):
    end = tracing.begin("part")
    assert (tracing.traceparent(), tracing.metadata()) == ("", None)
    with tracing.served("Join", ()):
        end()
assert not [name for name in sys.modules if name.startswith("opentelemetry.")]
"""


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_an_endpoint_nothing_is_imported(environment: dict[str, str]) -> None:
    done = in_a_process(USE, **environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"MISSING": "yes"}, "OpenTelemetry is not installed: pip install 'fedpft[tracing]'"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is grpc"),
    ],
)
def test_what_cannot_be_exported_is_said_and_the_work_goes_on(environment: dict[str, str], told: str) -> None:
    missing = "import os, sys\nif os.environ.get('MISSING'): sys.modules['opentelemetry'] = None\n"
    script = missing + USE.replace("assert not [", "[")
    done = in_a_process(script, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


def test_an_endpoint_that_does_not_answer_holds_nobody_up() -> None:
    script = """
import time
from common.observability import tracing
with tracing.exporting("fedpft-worker"):
    with tracing.span("task"):
        begun = time.monotonic()
    assert time.monotonic() - begun < 0.1
    begun = time.monotonic()
print(time.monotonic() - begun)
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = in_a_process(script, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) < 3
        assert time.monotonic() - begun < 30


def test_a_span_hangs_below_the_one_that_another_process_names(receiver: Receiver) -> None:
    with tracing.exporting("fedpft-worker", "a"):
        with tracing.span("task", FOREIGN, round=3):
            assert tracing.traceparent().startswith(FOREIGN[:36])
            assert logs._process.about.trace == FOREIGN[3:35]
        assert logs._process.about.trace == ""
        assert tracing.traceparent() == ""
    (span,) = receiver.of("fedpft-worker", "task", round=3)
    assert (span.trace, span.parent, span.instance) == (FOREIGN[3:35], FOREIGN[36:52], "a")


@pytest.mark.parametrize(
    "traceparent", ["", "x", FOREIGN.upper(), f"{FOREIGN}-1", "00-" + "0" * 32 + FOREIGN[35:]]
)
def test_a_malformed_parent_is_none(receiver: Receiver, traceparent: str) -> None:
    with tracing.exporting("fedpft-worker"), tracing.span("task", traceparent):
        pass
    (span,) = receiver.of("fedpft-worker", "task")
    assert span.parent == ""


def test_a_call_is_traced_only_within_a_trace_that_was_begun_here(receiver: Receiver) -> None:
    with tracing.exporting("fedpft-coordinator"):
        with tracing.span("round"):
            ours = tracing.metadata()
        for received in ((), None, ours, (("traceparent", FOREIGN),), (("traceparent", b"\xff"),)):
            with tracing.served("SubmitUpdate", received):
                pass
    (above,) = receiver.of("fedpft-coordinator", "round")
    (call,) = receiver.of("fedpft-coordinator", "SubmitUpdate")
    assert (call.trace, call.parent, call.served) == (above.trace, above.span, True)


def test_of_an_error_only_its_kind_is_told(receiver: Receiver) -> None:
    with tracing.exporting("fedpft-coordinator"):
        with pytest.raises(BadUpdate), tracing.span("round"):
            ours = tracing.metadata()
            raise BadUpdate("label 'secret' is not known")
        with pytest.raises(BadUpdate), tracing.served("SubmitUpdate", ours):
            raise BadUpdate("label 'secret' is not known")
    assert [s.attributes.get("error.type") for s in receiver.spans] == ["BadUpdate", "BadUpdate"]
    assert all(s.failed for s in receiver.spans)
    assert "secret" not in repr(receiver.spans)
    assert not any("events" in s.attributes for s in receiver.spans)
