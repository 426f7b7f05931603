"""The FM corrected after the last round: what it is taught, on what, and whether that helped. Blocking."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common.config.choices import CorrectionTeacher
from common.config.method import CorrectionSection
from common.data.batches import Dataset, Subset
from common.errors import BadUpdate
from common.model.adapter import Adapted
from common.model.held import device_of
from common.records import ArtifactRef
from common.runtime import seeds
from common.storage.tensors import TensorFile
from coordinator.algorithms import correction
from coordinator.algorithms.correction import Teacher
from coordinator.modelling.building import ORIGIN, OnProgress, keep_checkpoint

CORRECTION_FILE = "correction-checkpoint.safetensors"


@dataclass(frozen=True)
class Corrected:
    """The FM's corrected adapter, None where it is left out; the mean KL divergence from the teacher on
    held-out public data before and after, in nats."""

    adapter: dict[str, Tensor] | None
    before: float
    after: float


@dataclass(frozen=True)
class Corrector:
    """Corrects an FM by a sub-FM, both with the last adapter in them; the same inputs give the same bits."""

    fm: Adapted
    sub_fm: Adapted
    public: Dataset
    section: CorrectionSection
    seed: int

    def correct(
        self,
        adapter: ArtifactRef,
        previous: Mapping[str, Tensor] | None,
        checkpoint: Path,
        on_progress: OnProgress,
    ) -> Corrected:
        """Distil the teacher into the FM, which is left changed; what breaks off goes on from `checkpoint`.

        `adapter` is what is plugged in, `previous` the FM's adapter of the round before.
        """
        s, kind = self.section, self.fm.kind
        rows = torch.randperm(len(self.public), generator=self._draw("held-out")).tolist()
        aside = min(s.held_out, max(1, len(rows) // 10))
        device = device_of(self.fm.model)
        held = [b.to(device) for b in Subset(self.public, rows[:aside]).in_order(s.batch_size)]
        order = seeds.derive(self.seed, "correction") % 2**62
        # Of a single row both are made: it says little, but is no error.
        batches = Subset(self.public, rows[aside:] or rows).endless(s.batch_size, order)
        teacher = self._teacher(previous)
        before = correction.distance(self.fm.model, teacher, held, kind)
        origin = self._origin(adapter)
        correction.correct(
            self.fm,
            teacher,
            (batch.to(device) for batch in batches),
            correction.Settings(
                s.steps, s.learning_rate, s.head_learning_rate, s.warmup, s.neuron_learning_rate
            ),
            on_step=lambda step, steps, loss: on_progress(step, steps),
            on_checkpoint=partial(keep_checkpoint, checkpoint, origin),
            checkpoint_every=s.checkpoint_every,
            resume=_left_at(checkpoint, origin),
        )
        after = correction.distance(self.fm.model, teacher, held, kind)
        # Written so that what is not finite is left out, too.
        helped = after <= (1 - s.least_gain) * before and after < before
        return Corrected(self.fm.tensors() if helped else None, before, after)

    def _teacher(self, previous: Mapping[str, Tensor] | None) -> Teacher:
        now, below = correction.as_now(self.fm), partial(correction.predictions, self.sub_fm.model)
        match self.section.teacher:
            case CorrectionTeacher.MEAN:
                return correction.mean_of(partial(below, kind=self.fm.kind), now)
            case CorrectionTeacher.SUB_FM:
                return partial(below, kind=self.fm.kind)
            case CorrectionTeacher.ROUNDS:
                if previous is None:
                    return now
                present = self.fm.tensors()
                self.fm.load(previous)
                earlier = correction.as_now(self.fm)
                self.fm.load(present)
                return correction.mean_of(earlier, now)

    def _draw(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(seeds.derive(self.seed, "correction", purpose) % 2**62)

    def _origin(self, adapter: ArtifactRef) -> Tensor:
        """Tells this correction from others, uint8 [32]."""
        section = self.section.model_dump(mode="json", exclude={"checkpoint_every"})
        told = json.dumps([adapter.sha256, section, self.seed], sort_keys=True)
        return torch.tensor(list(hashlib.sha256(told.encode()).digest()))


def _left_at(checkpoint: Path, origin: Tensor) -> dict[str, Tensor] | None:
    """Where this correction broke off; None without a file, or with one that is of no use.

    That is one of another adapter, before the owner went back, or a damaged one: beginning anew gives the
    same bits.
    """
    if not checkpoint.exists():
        return None
    try:
        state = TensorFile(checkpoint).load()
    except BadUpdate:
        return None
    found = state.pop(ORIGIN, None)
    return state if found is not None and torch.equal(found, origin) else None
