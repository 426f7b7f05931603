"""SHA-256 of what passes by, computed beside it."""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

# Pieces that may wait to be hashed; they are held in memory for so long.
_MOST_PENDING = 2


class Hasher:
    """A SHA-256 that is computed in a thread of its own, while its caller gets or writes the next piece.

    Pieces must not change afterwards. `hexdigest` ends the thread; so does `close`.
    """

    def __init__(self, begun: Any = None) -> None:
        self._digest = begun or hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._pending: deque[Future[None]] = deque()

    def update(self, piece: bytes | memoryview) -> None:
        """The next piece; waits when too many are pending."""
        if len(self._pending) >= _MOST_PENDING:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._digest.update, piece))

    def hexdigest(self) -> str:
        """Of all pieces, as lower-case hexadecimal."""
        self.close()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Hash what is pending, and no more."""
        self._thread.shutdown()
