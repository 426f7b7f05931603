"""One of the processes of `fedpft build --processes`; `ranks` starts it: FOLDER RANK COUNT."""

import json
import logging
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

from common.runtime.signals import listen

# One process may cut, read and write for minutes before the others hear of it again; that one is dead is
# seen by who started them.
_PATIENCE = timedelta(hours=6)


def main(folder: Path, rank: int, count: int) -> int:
    """The exit code; why it failed, if it did, stands in the folder."""
    # At once, and without a word: whoever asks for it speaks.
    listen(service=False)
    logging.disable(logging.INFO)
    # Of torch's for its own developers: a user can mend none.
    warnings.simplefilter("ignore")
    from common.storage.files import write_atomically
    from coordinator.modelling.ranks import REPORT_FILE

    try:
        _build(folder, rank, count)
    except Exception as error:  # whatever it is, the starter tells it
        text = " ".join(str(error).split())[:400]
        report = json.dumps([type(error).__name__, text])
        write_atomically(folder / REPORT_FILE.format(rank), report.encode())
        return 1
    return 0


def _build(folder: Path, rank: int, count: int) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from common.config.run import RunConfig
    from coordinator.algorithms.sharding import Ranks
    from coordinator.modelling.prebuild import build_ahead
    from coordinator.modelling.ranks import MEETING_FILE, TASK_FILE

    # On CPUs DTensor says that it takes another way than on GPUs.
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    task = json.loads((folder / TASK_FILE).read_text())
    config = RunConfig.of_stored(task["config"])
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config.compute.threads or max(1, cores // count))
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.FileStore(str(folder / MEETING_FILE), count),  # type: ignore[attr-defined]  # of its C half
        rank=rank,
        world_size=count,
        timeout=_PATIENCE,
        device_id=torch.device("cuda", rank) if cuda else None,
    )
    try:
        build_ahead(config, Path(task["out"]), Ranks(init_device_mesh("cuda" if cuda else "cpu", (count,))))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    # Not by way of the interpreter's end, where a library's threads may wait for a process that is gone.
    os._exit(code)
