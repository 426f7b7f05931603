"""`fedpft build`: the sub-FM ahead of a run, alone or in one of several processes."""

from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel

from common.config.choices import Construction
from common.config.run import RunConfig
from common.data.encoding import encode
from common.errors import ConfigError
from common.model.layers import layers_of
from common.runtime.allocator import give_back
from coordinator.algorithms.sharding import Ranks, shard
from coordinator.modelling.building import ABOUT_FILE, CHECKPOINT_FILE, OnProgress, Recipe, SubModelBuilder
from coordinator.modelling.checks import check_run
from coordinator.modelling.data import read_source
from coordinator.modelling.foundation import foundation_of
from coordinator.modelling.spreading import spread


def require_buildable(config: RunConfig, out: Path) -> None:
    """Raises ConfigError when there is nothing to build, or `out` holds a build already."""
    if config.sub_fm.construction is not Construction.FFN_PRUNING:
        raise ConfigError(f'sub_fm.construction = "{config.sub_fm.construction}" needs no building')
    if (out / ABOUT_FILE).exists():
        raise ConfigError(f"{out} holds a built sub-FM already; choose another folder")


def build_ahead(config: RunConfig, out: Path, ranks: Ranks | None = None) -> None:
    """Cut and align a sub-FM as `config` says and write it to the folder `out`, with progress.

    Of several processes that hold the models together, its `ranks`, each calls this. Broken off, it goes on
    from its last checkpoint. Raises ConfigError when there is nothing to build or `out` holds a build
    already; ModelError, DataError.
    """
    require_buildable(config, out)
    # Without a GPU several processes on CPUs work together all the same.
    accelerator = Accelerator(cpu=not torch.cuda.is_available()) if ranks is None else None
    alone = accelerator is not None and accelerator.num_processes == 1
    if config.compute.device_map is not None and not alone:
        raise ConfigError("compute.device_map must be unset for several processes, which share the FM out")
    task = config.task
    loaded = foundation_of(config)
    fm, spreads = loaded.model, config.compute.device_map is not None
    if accelerator is not None and not spreads:
        fm.to(accelerator.device)
    assert config.data.public is not None
    examples = read_source(config.data.public, config)
    builder = SubModelBuilder(
        fm,
        task.kind,
        encode(loaded.processor, examples, task.kind, task.max_length, None),
        Recipe.of(config),
        # One process on a CPU needs nothing of it, and ends with the coordinator's own bits.
        None if spreads or (alone and fm.device.type == "cpu") else accelerator,
        ranks,
    )
    check_run(loaded, config, (builder.public,))
    if spreads:
        spread(fm, config.compute)
    whole = _parameters_in_layers(fm)
    if ranks is not None:
        several, is_main = ranks.count, ranks.is_main
    elif accelerator is not None:
        several, is_main = accelerator.num_processes, accelerator.is_main_process
    console = Console(stderr=True, quiet=not is_main)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        plan, sub_fm = builder.cut(_bar(progress, "scoring neurons"))
        kept = _parameters_in_layers(sub_fm)
        if ranks is not None:
            shard(fm, ranks)
            shard(sub_fm, ranks, trained=True)
            give_back()
        checkpoint = out / CHECKPOINT_FILE
        if checkpoint.exists():
            console.print(f"going on from {checkpoint}")
        error = builder.align(plan, sub_fm, _bar(progress, "aligning"), checkpoint)
    if is_main or ranks is not None:
        builder.save(out, plan, sub_fm, error)
    if is_main:
        checkpoint.unlink(missing_ok=True)
        Console().print(
            f"{out}: {kept:,} of {whole:,} parameters in the layers; "
            f"hidden-state error {error[0]:.4f} → {error[1]:.4f}, on {several} process(es)"
        )
    if accelerator is not None:
        accelerator.end_training()


def _parameters_in_layers(model: PreTrainedModel) -> int:
    return sum(p.numel() for layer in layers_of(model) for p in layer.parameters())


def _bar(progress: Progress, what: str) -> OnProgress:
    bar = progress.add_task(what, total=None)
    return lambda step, steps: progress.update(bar, completed=step, total=steps)
