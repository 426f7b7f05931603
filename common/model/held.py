"""Where a model's values are that it does not hold itself: of a model spread over devices, memory and disk.

accelerate brings an offloaded layer's values to it for each pass and takes them away after; in between its
parameters are on the meta device. Whoever wants the values themselves asks here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_ELSEWHERE, _MAIN = "values_elsewhere", "main_device"


def keep_elsewhere(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """The module's own parameters are going to be these, by name, and it is not going to hold them."""
    module.__dict__[_ELSEWHERE] = values


def value_of(module: nn.Module, name: str) -> Any:
    """The attribute `name` of a module; of a parameter that is elsewhere its value there, to be read only."""
    found = getattr(module, name)
    elsewhere = module.__dict__.get(_ELSEWHERE)
    return elsewhere[name] if elsewhere and isinstance(found, Tensor) and found.is_meta else found


def is_elsewhere(module: nn.Module) -> bool:
    """Whether the module does not hold its parameters itself."""
    return _ELSEWHERE in module.__dict__


@contextmanager
def held_itself(model: nn.Module) -> Iterator[None]:
    """While open, all of a model's modules hold their parameters: for what looks at them to add to them.

    They are in memory or mapped, not copied.
    """
    places = [
        (m, name, value) for m in model.modules() for name, value in m.__dict__.get(_ELSEWHERE, {}).items()
    ]
    for module, name, value in places:
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    try:
        yield
    finally:
        for module, name, value in places:
            empty = nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
            module.register_parameter(name, empty)


def set_main_device(model: nn.Module, device: torch.device) -> None:
    """Of a spread model: where its inputs go and its outputs come from."""
    model.__dict__[_MAIN] = device


def device_of(model: nn.Module) -> torch.device:
    """Where a model's inputs go."""
    # peft's wrapper passes on what it is asked for.
    main = getattr(model, _MAIN, None)
    return main if isinstance(main, torch.device) else next(model.parameters()).device
