"""Files of a data set of the hub: from a copy on disk in the hub's layout, or from the hub itself."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from common.data.folders import require_all_shards
from common.errors import DataError

# Where the hub keeps the Parquet that it makes of data sets that are no Parquet themselves.
CONVERTED = "refs/convert/parquet"


@dataclass(frozen=True)
class HubFiles:
    """Files of a data set's repository."""

    hub_id: str
    pattern: str
    """Their names within it, such as "sst2/train-*.parquet"."""
    revision: str | None = None
    """The branch that has them; None for the main one."""


def hub_files(name: str, wanted: HubFiles, root: Path | None) -> list[Path]:
    """The files in order: from `root`, which holds copies of repositories (ROOT/nyu-mll/glue/… or
    ROOT/glue/…), else from the hub, whose downloads stay in its cache.

    Raises DataError when they are in neither place, with the command that gets them; `name` is what people
    call them by.
    """
    return _on_disk(name, wanted, root) or _from_hub(name, wanted, root)


def _on_disk(name: str, wanted: HubFiles, root: Path | None) -> list[Path]:
    if root is None:
        return []
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of data sets")
    for repository in (root / wanted.hub_id, root / wanted.hub_id.rpartition("/")[2]):
        if files := sorted(repository.glob(wanted.pattern)):
            split = files[0].name.partition("-")[0]
            require_all_shards(files, f"{files[0].parent}, split {split},")
            return files
    return []


def _from_hub(name: str, wanted: HubFiles, root: Path | None) -> list[Path]:
    try:
        folder = snapshot_download(
            wanted.hub_id, repo_type="dataset", revision=wanted.revision, allow_patterns=[wanted.pattern]
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _missing(name, wanted, root) from error
    # Offline, the cache may hold the repository without these files.
    if not (files := sorted(Path(folder).glob(wanted.pattern))):
        raise _missing(name, wanted, root)
    return files


def _missing(name: str, wanted: HubFiles, root: Path | None) -> DataError:
    where = "is not in the hub's cache" if root is None else f"is neither in {root} nor in the hub's cache"
    folder = root or Path("DATA")
    branch = "" if wanted.revision is None else f"--revision {wanted.revision} "
    command = (
        f"hf download --repo-type dataset {wanted.hub_id} {branch}--include '{wanted.pattern}' "
        f"--local-dir {shlex.quote(str(folder / wanted.hub_id))}"
    )
    then = "" if root is not None else f", and name {folder} as the folder of data sets"
    return DataError(f"{name} {where}, and the hub cannot be reached; run: {command}{then}")
