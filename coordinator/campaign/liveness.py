"""Whether a run's process is at work, was stopped in order, or died: for those who look at its directory."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.config.run import RunConfig
from common.errors import StoreError
from common.records import Phase
from common.run_status import RunStatus
from common.storage.files import holder
from coordinator.campaign.status import stored_status
from coordinator.storage.store import Store

# There while a coordinator serves; its time is that of the last sign of life.
ENDPOINT_FILE = "endpoint.json"
_FAILED = "run_failed"
# Events after which a failure is another one, whatever it says.
_STEPS_FORWARD = (
    "sub_model_ready",
    "update_received",
    "round_closed",
    "gradient_gap",
    "aligned",
    "evaluated",
    "validated",
    "scores_received",
    "run_rewound",
)
_MOST_FAILURES = 3
_FORGOTTEN_SECONDS = 3600.0


def resting_status(store: Store, config: RunConfig) -> RunStatus:
    """As the store has it, and whether anybody is at work on it."""
    status = stored_status(store, config)
    if status.phase is not Phase.STOPPED:
        return status
    endpoint = store.directory / ENDPOINT_FILE
    if (owner := holder(store.directory)) is not None:
        about = _read(endpoint)
        where, which = about.get("address"), f" --run {about['run']}" if "run" in about else ""
        more = f"; `fedpft status --coordinator {where}{which}` tells more" if where else ""
        return replace(status, phase=_last_phase(store), waiting_for=f"{owner}, which is at work{more}")
    if (died := time_of_death(store.directory)) is not None:
        told = f"a start: {_death(died)}; the same command goes on"
        return replace(status, phase=Phase.DIED, waiting_for=told)
    return status


def time_of_death(directory: Path) -> float | None:
    """When the last coordinator of a run that nobody holds was last alive, if it did not end in order."""
    try:
        return (directory / ENDPOINT_FILE).stat().st_mtime
    except OSError:
        return None


def tell_death(directory: Path) -> str | None:
    """What to say of the process before this one, if it died."""
    died = time_of_death(directory)
    return None if died is None else _death(died)


def require_no_repetition(store: Store) -> None:
    """What ends a run in the same way again and again is not tried for ever by whatever restarts its process.

    Raises StoreError when its last three failures were one, with nothing done between them, and the last
    of them less than an hour ago.
    """
    last = store.events.last_of((*_STEPS_FORWARD, _FAILED), _MOST_FAILURES)
    same = {(event.kind, event.text) for event in last}
    if len(last) < _MOST_FAILURES or len(same) > 1 or last[0].kind != _FAILED:
        return
    if time.time() - last[0].time < _FORGOTTEN_SECONDS:
        raise StoreError(
            f"{store.directory}: the run has {last[0].text} ({_MOST_FAILURES} times on end in the same way); "
            "it is not tried again for an hour. When what is to blame is mended, add --again to the command"
        )


def newest_step(store: Store) -> int:
    """The sequence number of the last event that was a step forward; 0 before the first."""
    return next((event.sequence for event in store.events.last_of(_STEPS_FORWARD, 1)), 0)


def _death(died: float) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(died))
    return f"its process died at {when}, without an orderly stop"


def _last_phase(store: Store) -> Phase:
    for event in reversed(store.events.all()):
        name = event.text.removeprefix("phase: ")
        if event.kind == "phase_entered" and name in list(Phase):
            return Phase(name)
    return Phase.BUILDING


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
