"""A real run watched from outside: status page, health port, and the last figures after its end."""

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from common.observability.health import problem
from tests.integration.federation import federation


def read(url: str) -> bytes:
    with urlopen(url, timeout=20) as reply:
        return bytes(reply.read())


def test_a_run_is_seen_while_it_goes_on_and_for_a_while_after_its_end(
    tmp_path: Path, model_folder: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        health = f"127.0.0.1:{free.getsockname()[1]}"
    settings: dict[str, Any] = {
        "rounds__count": 1,
        "rounds__workers": 1,
        "rounds__minimum": 1,
        "server__page": "127.0.0.1:0",
        "server__health": health,
        "server__linger_seconds": 300.0,
    }
    with federation(tmp_path, model_folder, **settings) as running:
        endpoint = running.start_coordinator()
        page = f"http://127.0.0.1:{endpoint['page_port']}"
        assert problem(health) is None
        assert b"<title>FedPFT</title>" in read(f"{page}/")
        assert json.loads(read(f"{page}/run.json"))["over"] is False
        worker = running.start_worker(1, endpoint["address"])
        for _ in running.until("the page shows the end"):
            found = json.loads(read(f"{page}/run.json"))
            if found["over"]:
                break
        assert worker.wait(60) == 0
        assert found["phase"] == "finished"
        assert [e["round"] for e in found["evaluations"] if e["model"] == "fm"] == [0, 1]
        assert found["workers"][0]["up"] > 0
        assert {"round_opened", "run_finished"} <= {e["kind"] for e in found["events"]}
        metrics = read(f"http://127.0.0.1:{endpoint['metrics_port']}/metrics").decode()
        assert 'fedpft_phase{phase="finished"} 1.0' in metrics
        # The figures stay for five minutes, or until the owner has seen enough.
        coordinator = running.processes["coordinator"]
        begun = time.monotonic()
        coordinator.send_signal(signal.SIGTERM)
        assert coordinator.wait(30) == 0
        assert time.monotonic() - begun < 30
        assert problem(health) is not None
