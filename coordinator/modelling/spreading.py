"""The FM spread over devices: which of its layers is held where, and accelerate to bring it all together.

Layers alone are spread. What is before and behind them (embeddings, final norm, head) is small beside them,
is tuned or tied, and stays where the run computes.
"""

import logging
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import dispatch_model
from accelerate.utils import get_max_memory
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.config.service import ComputeSection
from common.errors import ConfigError
from common.model.held import is_elsewhere, keep_elsewhere, set_main_device
from common.model.layers import layer_prefix, layers_of
from common.runtime.compute import device_problem
from common.storage.tensors import TensorFile, write_tensors

log = logging.getLogger(__name__)
# accelerate warns of what is meant here: values on the meta device.
logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)

T = TypeVar("T")

CPU, DISK = "cpu", "disk"
_GIGABYTE = 10**9
# Of what is free of the device where the run computes: the sub-FM and activations are there as well.
_SHARE, _SHARE_OF_MAIN = 0.9, 0.5


def brought(model: PreTrainedModel, compute: ComputeSection, check: Callable[[], T]) -> T:
    """Bring the model to where `compute` says, and return what `check` finds. Raises ConfigError."""
    if compute.device_map is None:
        model.to(torch.device(compute.device))  # type: ignore[arg-type]  # mistyped in transformers 5
        return check()
    # Checks copy values; before they are spread these are where they were read from.
    found = check()
    spread(model, compute)
    return found


def spread(model: PreTrainedModel, compute: ComputeSection) -> None:
    """Hold the model's layers where `compute` says, in place; it is in memory or mapped, and whole.

    Raises ConfigError, with the model as it was, when a device is not there, the map does not fit the model,
    or layers are to lie on disk and no folder is given.
    """
    main = compute.device
    places = placed(model, compute)
    for name in dict.fromkeys([main, *places]):
        if name not in (CPU, DISK) and (problem := device_problem(name)) is not None:
            key = "compute.device" if name == main else "compute.device_map"
            raise ConfigError(f'{key} names "{name}", which cannot be used here: {problem}')
    device_map = dict.fromkeys(_rest(model), main)
    prefixes = [layer_prefix(model.config, i) for i in range(len(places))]
    device_map |= {prefix.removesuffix("."): place for prefix, place in zip(prefixes, places, strict=True)}
    offloaded = [i for i, place in enumerate(places) if place == DISK or (place == CPU and main != CPU)]
    values = _values(model, [i for i in offloaded if places[i] != DISK])
    if on_disk := [i for i in offloaded if places[i] == DISK]:
        values |= _on_disk(model, on_disk, compute.offload_folder)
    for i in offloaded:
        _note(model, prefixes[i], values)
    # What accelerate places with no module that it is in.
    for parameter in (p for name, p in model.named_parameters() if name in device_map):
        parameter.data = parameter.data.to(main)
    dispatch_model(
        model,
        device_map,
        main_device=main,
        state_dict=values,
        # What is on disk is mapped, and in `values`: nothing is to be looked up besides.
        offload_index={},
        force_hooks=True,
    )
    set_main_device(model, torch.device(main))
    told = ", ".join(f"{places.count(place)} on {place}" for place in dict.fromkeys(places))
    log.info("the FM's layers: %s; all else on %s", told, main)


def settle(model: PreTrainedModel, compute: ComputeSection) -> None:
    """What has come into offloaded layers since, adapters, goes to where these compute."""
    for layer in layers_of(model):
        if any(is_elsewhere(module) for module in layer.modules()):
            for parameter in layer.parameters():
                if not parameter.is_meta:
                    parameter.data = parameter.data.to(compute.device)


def placed(model: PreTrainedModel, compute: ComputeSection) -> list[str]:
    """The device of each layer. Raises ConfigError."""
    count, chosen = len(layers_of(model)), compute.device_map
    if not isinstance(chosen, Mapping):
        return _filled(model, compute)
    places = [compute.device] * count
    named: set[int] = set()
    for key, place in chosen.items():
        first, last = layers_named(key)
        if last >= count:
            raise ConfigError(
                f'compute.device_map names "{key}", and the model has the layers 0 to {count - 1}'
            )
        if both := named & set(range(first, last + 1)):
            raise ConfigError(f"compute.device_map names layer {min(both)} twice")
        named |= set(range(first, last + 1))
        places[first : last + 1] = [place] * (last + 1 - first)
    return places


def layers_named(key: str) -> tuple[int, int]:
    """ "layers.3" or "layers.3-7": the first and the last layer."""
    first, _, last = key.removeprefix("layers.").partition("-")
    return int(first), int(last or first)


def _filled(model: PreTrainedModel, compute: ComputeSection) -> list[str]:
    """One device after the other, as much as goes there; what is left goes on disk."""
    main, given = compute.device, compute.max_gigabytes or {}
    most = {name: int(gigabytes * _GIGABYTE) for name, gigabytes in given.items()}
    free = {CPU if name == CPU else f"cuda:{name}": room for name, room in get_max_memory().items()}
    main_name = f"{main}:0" if main == "cuda" else main
    others = [name for name in free if name not in (main_name, CPU)] if main != CPU else []
    order = [main_name, *others, *([CPU] if main != CPU else [])]
    sizes = [sum(_bytes(p) for p in layer.parameters()) for layer in layers_of(model)]
    rest = sum(_bytes(p) for p in model.parameters()) - sum(sizes)
    places: list[str] = []
    for name in order:
        share = _SHARE_OF_MAIN if name == main_name else _SHARE
        room = most.get(name, int(share * free.get(name, 0))) - (rest if name == main_name else 0)
        while len(places) < len(sizes) and sizes[len(places)] <= room:
            room -= sizes[len(places)]
            places.append(main if name == main_name else name)
    return places + [DISK] * (len(sizes) - len(places))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _rest(model: PreTrainedModel) -> list[str]:
    """Names of modules and parameters that are together all but the layers."""
    layers = {layer_prefix(model.config, i) for i in range(len(layers_of(model)))}

    def beside(module: nn.Module, prefix: str) -> Iterator[str]:
        yield from (prefix + name for name, _ in module.named_parameters(recurse=False))
        for name, child in module.named_children():
            inside = f"{prefix}{name}."
            if inside in layers:
                continue
            if any(layer.startswith(inside) for layer in layers):
                yield from beside(child, inside)
            else:
                yield inside.removesuffix(".")

    return list(beside(model, ""))


def _values(model: PreTrainedModel, layers: Sequence[int]) -> dict[str, Tensor]:
    prefixes = tuple(layer_prefix(model.config, i) for i in layers)
    found = model.named_parameters() if prefixes else ()
    return {name: parameter.detach() for name, parameter in found if name.startswith(prefixes)}


def _on_disk(model: PreTrainedModel, layers: Sequence[int], folder: Path | None) -> dict[str, Tensor]:
    """The layers' values, mapped from a file that goes when the model does."""
    if folder is None:
        raise ConfigError(
            f"{len(layers)} of the FM's layers are to lie on disk; set compute.offload_folder to a folder "
            "for them, or give devices more room"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = tempfile.TemporaryDirectory(prefix="fedpft-fm-", dir=folder)
    except OSError as error:
        raise ConfigError(f"compute.offload_folder {folder} cannot be written: {error.strerror}") from None
    weakref.finalize(model, own.cleanup)
    file = Path(own.name) / "layers.safetensors"
    write_tensors(file, _values(model, layers))
    return TensorFile(file).load()


def _note(model: PreTrainedModel, prefix: str, values: Mapping[str, Tensor]) -> None:
    """In each of a layer's modules where its own values are."""
    for path, module in model.get_submodule(prefix.removesuffix(".")).named_modules():
        start = f"{prefix}{path}." if path else prefix
        own = {name: values[start + name] for name, _ in module.named_parameters(recurse=False)}
        if own:
            keep_elsewhere(module, own)
