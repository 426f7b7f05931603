"""One page of metrics for many runs."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from common.hosted_runs import RunEntry, RunState
from coordinator.hosting.run_metrics import ServerMetrics
from coordinator.metrics import Metrics


def test_each_runs_series_carry_its_id_and_the_process_is_told_once() -> None:
    runs = {"a": Metrics(), "b": Metrics()}
    server = ServerMetrics(lambda: {run: metrics.registry for run, metrics in runs.items()})
    runs["a"].rounds.set(3)
    runs["b"].rounds.set(5)
    server.called("Join", "OK", 0.1)
    server.holds([RunEntry("a", "", 0, "", 0.0, RunState.RUNNING), RunEntry("b", "", 0, "", 0.0)])
    families = list(text_string_to_metric_families(generate_latest(server.registry).decode()))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    found = {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}
    assert found["fedpft_rounds_planned", ("run", "a")] == 3
    assert found["fedpft_rounds_planned", ("run", "b")] == 5
    assert found["fedpft_runs", ("state", "running")] == found["fedpft_runs", ("state", "queued")] == 1
    for name in ("process_cpu_seconds_total", "fedpft_build_info", "fedpft_rpc_seconds_count"):
        assert len([key for key in found if key[0] == name]) == 1, name
    assert found["fedpft_updates_total", ("result", "accepted"), ("run", "a")] == 0


def test_a_run_that_is_gone_takes_its_series_with_it() -> None:
    runs = {"a": Metrics()}
    server = ServerMetrics(lambda: {run: metrics.registry for run, metrics in runs.items()})
    assert b'run="a"' in generate_latest(server.registry)
    runs.clear()
    assert b'run="a"' not in generate_latest(server.registry)
