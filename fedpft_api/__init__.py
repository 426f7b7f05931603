"""What the commands do, for Python: start a run and workers, watch, look, simulate, and load what was tuned.

`import fedpft_api as fedpft`. The package `fedpft` is the protocol's: generated code alone.
Errors are those of `common.errors`, in one line, as the commands print them.
"""

from common.config.run import RunConfig
from common.errors import FedPftError
from common.run_status import Evaluation, Event, RunStatus
from fedpft_api.processes import Worker, worker
from fedpft_api.results import Loaded, load, simulate
from fedpft_api.runs import Run, configuration, status, submit, watch

__all__ = [
    "Evaluation",
    "Event",
    "FedPftError",
    "Loaded",
    "Run",
    "RunConfig",
    "RunStatus",
    "Worker",
    "configuration",
    "load",
    "simulate",
    "status",
    "submit",
    "watch",
    "worker",
]
