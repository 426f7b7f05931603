"""Terminals that are not UTF-8: what they cannot show is shown in ASCII, and never ends a command."""

import codecs
import sys

_HANDLER = "fedpft.plain"
_PLAIN = dict(
    zip(
        "→←…–—−×·•≥≤‘’“”✓✗█",
        ["->", "<-", "...", "-", "-", "-", "x", ".", "*", ">=", "<=", "'", "'", '"', '"', "ok", "x", "#"],
        strict=True,
    )
)
# Boxes and rules.
_PLAIN |= (
    dict.fromkeys("─━╸╺╴╶╌═", "-")
    | dict.fromkeys("│┃▏╎║", "|")
    | dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼┏┓┗┛┡┩╇┳┻", "+")
)


def show_anyway() -> None:
    """From now on what standard output and error cannot encode is replaced."""
    codecs.register_error(_HANDLER, _replaced)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        if reconfigure is not None and not encoding.lower().replace("-", "").startswith("utf"):
            reconfigure(errors=_HANDLER)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in text), error.end
