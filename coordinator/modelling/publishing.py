"""What workers get of a sub-FM before the rounds: its weights' file; and the two models' sizes. Blocking."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from common.model.int8 import channels_of, each_as_int8, schema_as_int8
from common.model.layers import layers_of
from common.model.submodel import Held, own_weights
from common.quantization import Quantization
from common.records import ArtifactKind, ArtifactRef, TaskKind
from common.run_status import ModelFacts
from common.storage.tensor_header import in_file_order
from coordinator.storage.store import Store


def write_weights(store: Store, sub_fm: PreTrainedModel, kind: TaskKind, held: Held) -> ArtifactRef:
    """A plain sub-FM's weights as workers hold them; what is rounded is rounded tensor by tensor."""
    weights = own_weights(sub_fm)
    if held.quantization is Quantization.NONE:
        return store.artifacts.add_tensors(ArtifactKind.SUB_MODEL, weights)
    channels = channels_of(sub_fm, kind, held.new_modules)
    schema = schema_as_int8(weights, channels)
    each = each_as_int8(weights, channels, in_file_order(schema))
    return store.artifacts.add_each(ArtifactKind.SUB_MODEL, schema, each)


def facts_of(fm: PreTrainedModel, sub_fm: PreTrainedModel, adapter_parameters: int) -> ModelFacts:
    """Sizes of the FM and of a plain sub-FM, in parameters."""
    return ModelFacts(
        fm_parameters=_parameters([fm]),
        sub_fm_parameters=sum(w.numel() for w in own_weights(sub_fm).values()),
        fm_layer_parameters=_parameters(layers_of(fm)),
        sub_fm_layer_parameters=_parameters(layers_of(sub_fm)),
        adapter_parameters=adapter_parameters,
        fm_bytes=sum(p.numel() * p.element_size() for p in fm.parameters()),
    )


def _parameters(modules: Sequence[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())
