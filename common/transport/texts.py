"""Texts from the other side that become part of logs, metrics and file names, checked."""

import re

from common.errors import BadMessage
from common.trust.identity import NAME

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(NAME)
_MOST_TOLD = 300


def digest(text: str) -> str:
    """Check a digest. Raises BadMessage."""
    if not _SHA256.fullmatch(text):
        raise BadMessage("a digest must be 64 lower-case hexadecimal digits")
    return text


def worker_name(text: str) -> str:
    """Check a worker's name, which becomes part of logs, metrics and file names.

    Raises BadMessage.
    """
    if not _NAME.fullmatch(text):
        raise BadMessage(
            f"worker name {text[:64]!r} must be 1 to 64 letters, digits, '.', '_' or '-', "
            "the first a letter or digit"
        )
    return text


def one_line(text: str) -> str:
    """What the other side says for people, as it may stand in a log: one line, not long."""
    told = " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())
    return told if len(told) <= _MOST_TOLD else f"{told[: _MOST_TOLD - 1]}…"
