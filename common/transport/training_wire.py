"""How workers train ↔ its message."""

from fedpft.v1 import types_pb2

from common.records import LocalOptimizer, TrainingSpec
from common.transport.enums import enum_from_pb


def training_to_pb(spec: TrainingSpec) -> types_pb2.TrainingSpec:
    return types_pb2.TrainingSpec(
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        head_learning_rate=spec.head_learning_rate,
        weight_decay=spec.weight_decay,
        max_gradient_norm=spec.max_gradient_norm,
        proximal=spec.proximal,
        optimizer=types_pb2.LocalOptimizer.Value(f"LOCAL_OPTIMIZER_{spec.optimizer.name}"),
        momentum=spec.momentum,
        class_weights=spec.class_weights,
        tokens_per_step=spec.tokens_per_step,
        checkpointing=spec.checkpointing,
        neuron_learning_rate=spec.neuron_learning_rate,
    )


def training_from_pb(m: types_pb2.TrainingSpec) -> TrainingSpec:
    return TrainingSpec(
        m.epochs,
        m.batch_size,
        m.learning_rate,
        m.head_learning_rate,
        m.weight_decay,
        m.max_gradient_norm,
        m.proximal,
        # 0: of a coordinator from before there was a choice.
        enum_from_pb(LocalOptimizer, types_pb2.LocalOptimizer, "LOCAL_OPTIMIZER_", m.optimizer or 1),
        m.momentum,
        tuple(m.class_weights),
        m.tokens_per_step,
        m.checkpointing,
        m.neuron_learning_rate,
    )
