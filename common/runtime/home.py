"""A home directory for libraries that must have one, where the user has none, as in some containers."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

_invented: list[str] = []


def provide_home() -> None:
    """Where no home is known, set HOME to a temporary folder of this user's, and USER to its number.

    The hub's client would otherwise write into a folder named "~", torch and others would fail.
    """
    if os.environ.get("HOME") == "":
        del os.environ["HOME"]
    if not os.environ.keys() & {"LOGNAME", "USER", "LNAME", "USERNAME"} and not _is_listed():
        os.environ["USER"] = str(os.getuid())
    if known_home() is None and not _invented:
        with suppress(OSError):
            os.environ["HOME"] = tempfile.mkdtemp(prefix="fedpft-home-")
            _invented.append(os.environ["HOME"])


def known_home() -> Path | None:
    """The user's home directory; None where none is known."""
    home = os.path.expanduser("~")  # noqa: PTH111  # Path.home() raises instead.
    return None if home == "~" or home in _invented else Path(home)


def _is_listed() -> bool:
    import pwd

    try:
        return bool(pwd.getpwuid(os.getuid()))
    except KeyError:
        return False
