"""How workers train, under which promise of privacy and on which terms ↔ their messages."""

import math

from fedpft.v1 import types_pb2

from common.errors import BadMessage
from common.private_task import DpSpec, DpUnit
from common.records import LocalOptimizer, TrainingSpec
from common.run_offers import Construction, RunTerms
from common.transport.enums import enum_from_pb
from common.transport.texts import one_line


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


def dp_to_pb(spec: DpSpec | None) -> types_pb2.DpSpec | None:
    if spec is None:
        return None
    return types_pb2.DpSpec(
        unit=types_pb2.DpUnit.Value(f"DP_UNIT_{spec.unit.name}"),
        epsilon=spec.epsilon,
        delta=spec.delta,
        clip=spec.clip,
        batch_size=spec.batch_size,
        rounds=spec.rounds,
        noise=spec.noise,
    )


def dp_from_pb(m: types_pb2.DpSpec) -> DpSpec:
    unit = enum_from_pb(DpUnit, types_pb2.DpUnit, "DP_UNIT_", m.unit)
    numbers = {"epsilon": m.epsilon, "delta": m.delta, "clip": m.clip}
    for name, number in numbers.items():
        if not (math.isfinite(number) and number > 0):
            raise BadMessage(f"differential privacy's {name} must be a number > 0, got {number}")
    if m.delta >= 1 or not m.batch_size or not m.rounds:
        raise BadMessage("differential privacy's delta must be < 1, batch_size and rounds >= 1")
    if not math.isfinite(m.noise) or m.noise < 0 or (m.noise > 0) != (unit is DpUnit.WORKER):
        raise BadMessage(
            f"differential privacy's noise must be > 0 by worker, and 0 by {DpUnit.EXAMPLE}, got {m.noise}"
        )
    return DpSpec(unit, m.epsilon, m.delta, m.clip, m.batch_size, m.rounds, m.noise)


def terms_to_pb(terms: RunTerms | None) -> types_pb2.RunTerms | None:
    if terms is None:
        return None
    return types_pb2.RunTerms(
        rounds=terms.rounds,
        construction=types_pb2.Construction.Value(f"CONSTRUCTION_{terms.construction.name}"),
        submitter=terms.submitter,
        label=terms.label,
    )


def terms_from_pb(m: types_pb2.RunTerms) -> RunTerms:
    construction = enum_from_pb(Construction, types_pb2.Construction, "CONSTRUCTION_", m.construction)
    return RunTerms(m.rounds, construction, one_line(m.submitter), one_line(m.label))
