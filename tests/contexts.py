"""A run's context around a store, without models: for tests of what workers and the owner talk to."""

from typing import Any

from common.config.file import parse_config
from common.runtime.compute import InlineCompute
from coordinator.context import RunContext
from coordinator.storage.store import Store


def context(store: Store, settings: dict[str, Any] | None = None) -> RunContext:
    """Two classes of short texts, and `settings` by dotted key; the store is told that its run is "run"."""
    given: dict[str, Any] = {
        "run.directory": store.directory,
        "model.path": "unused",
        "task.labels": ("no", "yes"),
        "task.max_length": 16,
        "alignment.steps": 0,
        "server.max_transfers": 2,
    }
    store.open_run("run", "{}")
    return RunContext.of(parse_config(given | (settings or {}), "a test"), store, InlineCompute())
