"""What a worker reads anew between runs: its private data and its policy, once their files have changed."""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from common.errors import ConfigError, DataError
from common.storage.files import digest_of
from worker.data import PrivateData, Source, files_of
from worker.policy import load_policy

log = logging.getLogger(__name__)

# Files are looked at so often at most; where that takes long, such as in a folder of many images, so rarely
# that it takes a thousandth of the time.
_LOOK_SECONDS = 5.0
_SHARE = 1000

Stamp = tuple[tuple[str, int, int], ...]


def stamp_of(paths: list[Path]) -> Stamp:
    """Sizes and times of change of files, and of those below folders; what is not there has none."""
    return tuple(sorted(_stamps(paths)))


def _stamps(paths: list[Path]) -> Iterator[tuple[str, int, int]]:
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            try:
                found = file.stat()
            except OSError:
                continue
            yield str(file), found.st_size, found.st_mtime_ns


class Fresh:
    """Private data and policy as they were read last, and whether their files have changed since."""

    def __init__(self, source: Source, name: str, policy_file: Path | None) -> None:
        """Raises DataError, ConfigError."""
        self._source, self._name, self._policy_file = source, name, policy_file
        self.state = secrets.token_hex(8)
        """Drawn anew when the content of either has changed."""
        self._stamp = self._stamped()
        self.policy = load_policy(policy_file)
        self.data = PrivateData.read(source, name)
        self._aside = self._digest_aside()
        self._took = _LOOK_SECONDS / _SHARE

    def _paths(self) -> list[Path]:
        own = [p for p in (self._source.validation, self._policy_file) if p is not None]
        if self._source.preset is not None and self._source.root is None:
            # The hub's, which is asked when a worker begins, and not every few seconds.
            return own
        try:
            return [*files_of(self._source), *own]
        except DataError:
            return own

    def _digest_aside(self) -> str:
        """Of a file of its own that is scored on. Raises OSError."""
        return digest_of(filter(None, [self._source.validation]))

    def _stamped(self) -> Stamp:
        return stamp_of(self._paths())

    def changed(self) -> bool:
        """Whether a file looks other than when it was read. Blocking."""
        begun = time.monotonic()
        now = self._stamped()
        self._took = time.monotonic() - begun
        return now != self._stamp

    async def until_changed(self) -> None:
        """Until a file looks other than when it was read."""
        while not await asyncio.to_thread(self.changed):
            await asyncio.sleep(max(_LOOK_SECONDS, _SHARE * self._took))

    async def refresh(self) -> None:
        """Read anew what has changed; a file that is broken then is waited for, and told of once."""
        while await asyncio.to_thread(self.changed):
            try:
                await asyncio.to_thread(self._read)
            except (DataError, ConfigError) as error:
                log.error("%s; waiting until it is mended", " ".join(str(error).split()))
                await self.until_changed()

    def _read(self) -> None:
        """Blocking. Raises DataError, ConfigError; what was read before stays then."""
        # Before: what changes meanwhile is read once more.
        self._stamp = self._stamped()
        policy = load_policy(self._policy_file)
        try:
            data = PrivateData.read(self._source, self._name)
            aside = self._digest_aside()
        except OSError as error:
            raise DataError(f"the private data cannot be read: {error}") from error
        if (data.digest, aside) != (self.data.digest, self._aside):
            log.info("%d private examples in %s, read anew", len(data), data.examples.source)
            for note in data.notes:
                log.warning("%s", note)
        elif policy == self.policy:
            return
        if policy != self.policy:
            log.info("the policy was read anew")
        self._aside = aside
        self.data, self.policy, self.state = data, policy, secrets.token_hex(8)
