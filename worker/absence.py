"""A coordinator that does not answer a worker that stays: waited for, and told of now and then."""

import logging
import time
from collections.abc import Callable

from common.address import Address
from worker.metrics import Metrics

log = logging.getLogger(__name__)

# That it is still away is told again after so long.
_TOLD_EVERY_SECONDS = 3600.0
# The longest wait between two tries.
LONGEST_WAIT_SECONDS = 60.0


class Absence:
    """Lives on the event loop. `clock` gives seconds on a monotonic clock."""

    def __init__(
        self, address: Address, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address, self._metrics, self._clock = address, metrics, clock
        self._since: float | None = None
        self._told = 0.0

    def failed(self, error: Exception) -> None:
        """It gave no usable answer."""
        now = self._clock()
        if self._since is None:
            self._since = self._told = now
            self._metrics.absent_since.set_to_current_time()
            log.warning("coordinator %s: %s; waiting for it", self._address, error)
        elif now - self._told >= _TOLD_EVERY_SECONDS:
            self._told = now
            hours = (now - self._since) / 3600
            log.warning("coordinator %s: away for %.0f hours: %s", self._address, hours, error)

    def heard(self) -> None:
        """It answered."""
        if self._since is None:
            return
        log.info("coordinator %s is back after %.0f s", self._address, self._clock() - self._since)
        self._since = None
        self._metrics.absent_since.set(0)
