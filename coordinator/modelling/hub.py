"""Asking the hub for a model's configuration: said in the log, and not for ever."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from common.errors import ModelError
from common.runtime.stopping import between_pieces

log = logging.getLogger(__name__)

T = TypeVar("T")

# A configuration is small. The hub's client tries again and again, for each of several files.
SECONDS = 60.0
_LOOK_SECONDS = 0.2


def asked_of_hub(path: str, ask: Callable[[str], T]) -> T:
    """What `ask` finds for the hub's id `path`. Raises ModelError when nothing comes in time, and Stopped."""
    log.info("model %s: no such directory here; asking the hub for it, for %.0f s at most", path, SECONDS)
    found: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(ask(path))
        except BaseException as error:
            failed.append(error)

    # Left behind when it takes too long; it ends with the process.
    asking = threading.Thread(target=work, name="hub", daemon=True)
    asking.start()
    for _ in range(round(SECONDS / _LOOK_SECONDS)):
        asking.join(_LOOK_SECONDS)
        if found:
            return found[0]
        if failed:
            raise failed[0]
        between_pieces()
    raise ModelError(
        f"model {path}: no such directory, and the hub did not answer within {SECONDS:.0f} s; correct "
        "model.path, or set HF_HUB_OFFLINE=1 for a model that was downloaded before"
    )
