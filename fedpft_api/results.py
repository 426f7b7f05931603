"""What a run has come to, as models of transformers; and whole runs within this process."""

import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from common.run_status import RunStatus
from coordinator.campaign.liveness import resting_status
from coordinator.campaign.status import open_run
from fedpft_api.runs import Configuration, Run, configuration

if TYPE_CHECKING:
    # torch takes seconds to import; who only starts and watches needs none of it.
    from torch.nn import Module

    from common.data.examples import Columns
    from common.data.processors import Processor


class Loaded(NamedTuple):
    """A tuned model in eval mode, and its tokenizer or image processor."""

    model: "Module"
    processor: "Processor"


def load(
    where: Run | Path,
    round: int | Literal["best"] | None = None,
    merged: bool = True,
    model: str | None = None,
    corrected: bool = True,
) -> Loaded:
    """The foundation model with what a run has tuned; of its result, or after a round.

    With `merged` a plain model of transformers, else a PeftModel on the foundation model. `model` says where
    that is now, `corrected=False` leaves a correction out. Raises StoreError, ModelError, as `fedpft export`.
    """
    from common.data.processors import load_processor
    from common.model.tasks import auto_class
    from coordinator.owner.export import export

    directory = where.directory if isinstance(where, Run) else where
    store, config = open_run(directory, model)
    store.close()
    auto = auto_class(config.task.kind)
    with tempfile.TemporaryDirectory(prefix="fedpft-") as name:
        folder = Path(name)
        export(directory, folder, merged, model=model, corrected=corrected, which=round)
        if merged:
            tuned: Module = auto.from_pretrained(folder)
        else:
            import torch
            from peft import PeftModel
            from transformers import AutoConfig

            base = auto.from_pretrained(
                config.model.path,
                config=AutoConfig.from_pretrained(folder),
                dtype=getattr(torch, config.model.dtype, "auto"),
                # Its published head may be for other classes.
                ignore_mismatched_sizes=True,
            )
            tuned = PeftModel.from_pretrained(base, folder)
        return Loaded(tuned.eval(), load_processor(folder, config.task.kind))


def simulate(
    given: Configuration,
    clients: Mapping[str, Path | str],
    columns: "Columns | None" = None,
    score_every: int | None = 1,
) -> RunStatus:
    """A whole run in this process, with the bits of a run of services; clients by name, with their data.

    `columns` says where texts and labels stand. The FM is scored on the test data after every
    `score_every`-th round and the last. A run that broke off goes on. Raises ConfigError, DataError,
    ModelError, StoreError, RunFailed.
    """
    from common.data.examples import Columns, read_examples
    from experiments.simulation import simulate as run

    config = configuration(given)
    examples = {name: read_examples(Path(path), columns or Columns()) for name, path in clients.items()}
    run(config, examples, score_every=score_every)
    store, config = open_run(config.run.directory)
    with closing(store):
        return resting_status(store, config)
