"""Whether what names a model is a directory or an id of the hub."""

import re
from pathlib import Path

# As the hub has them: NAME or ORGANISATION/NAME.
_HUB_ID = re.compile(r"(?!.*(--|\.\.))(?:[\w][\w.-]{0,95}/)?[\w](?:[\w.-]{0,94}[\w])?", re.ASCII)


def names_directory(path: str, folder: Path = Path()) -> bool:
    """Whether `path`, seen from `folder`, can only be meant for a directory, be it there or not.

    It is when it cannot be a hub's id, and when its first folder is there: then what follows is mistyped.
    """
    if (folder / path).is_dir() or not _HUB_ID.fullmatch(path):
        return True
    first, slash, _ = path.partition("/")
    return bool(slash) and (folder / first).exists()
