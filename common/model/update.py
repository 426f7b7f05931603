"""What an update's file holds: the adapter's change, and activation counts where they were asked for."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from common.model import apoz
from common.model.adapter import trained
from common.model.apoz import ZeroCounts
from common.records import AdapterSpec
from common.storage.schema import Schema, TensorSpec

DELTA, APOZ = "delta.", "apoz."


class Prefixed(Mapping[str, Tensor]):
    """The tensors of a mapping whose names begin with `prefix`, under the rest of their names."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._prefix + name in self._tensors

    def __iter__(self) -> Iterator[str]:
        skip = len(self._prefix)
        return (name[skip:] for name in self._tensors if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @classmethod
    def add(cls, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """The inverse: the same tensors under longer names."""
        return {prefix + name: tensor for name, tensor in tensors.items()}


def update_tensors(delta: Mapping[str, Tensor], counts: Mapping[int, ZeroCounts]) -> dict[str, Tensor]:
    """The file's tensors: `delta.*` of the adapter's names, `apoz.LAYER.*`."""
    return Prefixed.add(delta, DELTA) | Prefixed.add(apoz.to_tensors(counts), APOZ)


def update_schema(adapter: Schema, spec: AdapterSpec, counted: Mapping[int, int]) -> dict[str, TensorSpec]:
    """Schema of an update's file; `counted` maps the layers to count to their FFN widths."""
    schema = {DELTA + name: tensor for name, tensor in adapter.items() if trained(name, spec)}
    for layer, width in counted.items():
        schema[f"{APOZ}{layer}.zeros"] = TensorSpec((width,), torch.int64)
        schema[f"{APOZ}{layer}.tokens"] = TensorSpec((), torch.int64)
    return schema
