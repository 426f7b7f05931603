"""`fedpft build`: the sub-FM ahead of a run, on as many processes as `accelerate launch` gives."""

from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from common.config.choices import Construction
from common.config.run import RunConfig
from common.data.encoding import encode
from common.errors import ConfigError
from common.model.layers import layers_of
from coordinator.modelling.building import ABOUT_FILE, CHECKPOINT_FILE, OnProgress, Recipe, SubModelBuilder
from coordinator.modelling.checks import check_run
from coordinator.modelling.data import read_source
from coordinator.modelling.foundation import foundation_of


def build_ahead(config: RunConfig, out: Path) -> None:
    """Cut and align a sub-FM as `config` says and write it to the folder `out`, with progress.

    Broken off, it goes on from its last checkpoint. Raises ConfigError when there is nothing to build
    or `out` holds a build already; ModelError, DataError.
    """
    if config.sub_fm.construction is not Construction.FFN_PRUNING:
        raise ConfigError(f'sub_fm.construction = "{config.sub_fm.construction}" needs no building')
    if (out / ABOUT_FILE).exists():
        raise ConfigError(f"{out} holds a built sub-FM already; choose another folder")
    # Without a GPU several processes on CPUs work together all the same.
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    alone = accelerator.num_processes == 1
    task = config.task
    loaded = foundation_of(config)
    fm = loaded.model
    fm.to(accelerator.device)
    assert config.data.public is not None
    examples = read_source(config.data.public, config)
    builder = SubModelBuilder(
        fm,
        task.kind,
        encode(loaded.processor, examples, task.kind, task.max_length, None),
        Recipe.of(config),
        # One process on a CPU needs nothing of it, and ends with the coordinator's own bits.
        None if alone and accelerator.device.type == "cpu" else accelerator,
    )
    check_run(loaded, config, (builder.public,))
    console = Console(stderr=True, quiet=not accelerator.is_main_process)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        plan, sub_fm = builder.cut(_bar(progress, "scoring neurons"))
        checkpoint = out / CHECKPOINT_FILE
        if checkpoint.exists():
            console.print(f"going on from {checkpoint}")
        error = builder.align(plan, sub_fm, _bar(progress, "aligning"), checkpoint)
    if accelerator.is_main_process:
        builder.save(out, plan, sub_fm, error)
        checkpoint.unlink(missing_ok=True)
        kept, whole = (
            sum(p.numel() for layer in layers_of(m) for p in layer.parameters()) for m in (sub_fm, fm)
        )
        Console().print(
            f"{out}: {kept:,} of {whole:,} parameters in the layers; "
            f"hidden-state error {error[0]:.4f} → {error[1]:.4f}, on {accelerator.num_processes} process(es)"
        )
    accelerator.end_training()


def _bar(progress: Progress, what: str) -> OnProgress:
    bar = progress.add_task(what, total=None)
    return lambda step, steps: progress.update(bar, completed=step, total=steps)
