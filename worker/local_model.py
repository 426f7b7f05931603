"""The sub-FM on the worker, kept at the version that the task names. Blocking: runs in the compute thread."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from common.data.batches import Dataset
from common.data.processors import write_processor
from common.errors import CannotTrain, ModelError
from common.model.adapter import Adapted
from common.model.apoz import ZeroCounter
from common.model.ffn import ffns_of
from common.model.submodel import Held, apply_patch, build
from common.model.wire_config import read_config
from common.private_task import DpUnit
from common.records import ArtifactRef, ModelTask, RunSpec, ScoreSums, SubModelRef, TrainTask
from common.runtime import seeds
from common.storage.schema import Schema, check_specs
from common.storage.tensors import TensorFile, header_of
from worker.budget import Budget
from worker.data import PrivateData
from worker.download_limits import MOST_DOWNLOAD_BYTES, Limits, judge, limits_of
from worker.policy import Policy
from worker.privacy_policy import PrivacyPolicy, require_private_task
from worker.private_training import fine_tune_privately
from worker.rest import Rest
from worker.secure_policy import SecurePolicy
from worker.train import LocalUpdate, OnStep, fine_tune

Files = Mapping[str, Path]


@dataclass(frozen=True)
class Place:
    """Where a worker works: its folder, its torch device, the coordinator's address; and what its owner
    allows: how many bytes the files of a task may take, whether its classes and their numbers may be told,
    whose sums it may be in, how much all of it may tell of an example, which runs, and when."""

    folder: Path
    device: torch.device
    most_download: int = MOST_DOWNLOAD_BYTES
    tells_classes: bool = True
    secure: SecurePolicy = field(default_factory=SecurePolicy)
    privacy: PrivacyPolicy = field(default_factory=PrivacyPolicy)
    policy: Policy = field(default_factory=Policy)
    rest: Rest = field(default_factory=Rest)
    coordinator: str = ""


class LocalModel:
    """Model, tokenised data and training of one run on one worker."""

    def __init__(self, worker: str, run: RunSpec, data: PrivateData, place: Place) -> None:
        self.worker, self.run = worker, run
        self._data, self._place = data, place
        self._adapted: Adapted | None = None
        self._dataset: Dataset | None = None
        self._validation: Dataset | None = None
        self._base: ArtifactRef | None = None
        self._patches: tuple[ArtifactRef, ...] = ()
        self._limits: tuple[object, Limits] | None = None
        self.budget = Budget(place.folder, place.privacy, data.digest)

    def lacks(self, wanted: SubModelRef) -> list[ArtifactRef]:
        """Artifacts to fetch before `equip` can bring the sub-FM to the version wanted."""
        if self._continues(wanted):
            return list(wanted.patches[len(self._patches) :])
        return [wanted.base, *wanted.patches, *wanted.processor]

    def _continues(self, wanted: SubModelRef) -> bool:
        known = self._patches
        return self._base == wanted.base and wanted.patches[: len(known)] == known

    def judge(self, task: ModelTask) -> None:
        """Before anything is fetched: raise BadMessage or ModelError when what is announced cannot be."""
        require_private_task(self.run, task)
        judge(task, self._limits_of(task.sub_model), self._place.most_download)

    def _limits_of(self, wanted: SubModelRef) -> Limits:
        shape = (wanted.config_json, wanted.ffn_widths, wanted.new_modules)
        if self._limits is None or self._limits[0] != shape:
            self._limits = shape, limits_of(self.run, wanted)
        return self._limits[1]

    def _require_weights(self, found: Schema, wanted: SubModelRef) -> None:
        """By the file's header: raise BadUpdate unless it holds this model's weights, and no others.

        Those that the model ties to others may be there.
        """
        limits = self._limits_of(wanted)
        check_specs({name: spec for name, spec in found.items() if name not in limits.tied}, limits.weights)

    def equip(self, wanted: SubModelRef, files: Files) -> None:
        """Bring the sub-FM to the version wanted; `files` maps digests of what `lacks` named to files.

        Raises ModelError, UnsupportedFamily, BadUpdate when they do not fit together.
        """
        if self._continues(wanted):
            assert self._adapted is not None
            missing = wanted.patches[len(self._patches) :]
        else:
            task = self.run.task
            config = read_config(wanted.config_json, task)
            self._require_weights(header_of(files[wanted.base.sha256]), wanted)
            weights = TensorFile.foreign(files[wanted.base.sha256]).load()
            held = Held(self.run.quantization, wanted.new_modules)
            module = build(config, task.kind, wanted.ffn_widths, weights, self._place.device, held)
            self._adapted = Adapted(module, task.kind, self.run.adapter, new=wanted.new_modules)
            contents = {ref.kind: files[ref.sha256].read_bytes() for ref in wanted.processor}
            processor = write_processor(self._place.folder / "processor", contents, task.kind)
            self._dataset = self._data.encoded(processor, task, apart=self._by_example)
            self._validation = self._data.encoded_validation(processor, task)
            self._base, missing = wanted.base, wanted.patches
        for patch in missing:
            apply_patch(ffns_of(self._adapted.base), TensorFile.foreign(files[patch.sha256]))
        self._patches = wanted.patches

    def train(self, task: TrainTask, adapter: Path, on_step: OnStep) -> LocalUpdate:
        """A round's local fine-tuning from the adapter in the file."""
        assert self._adapted is not None and self._dataset is not None
        if self._by_example:
            return self._train_privately(task, adapter, on_step)
        ffns = ffns_of(self._adapted.base)
        if odd := [layer for layer in task.apoz_layers if layer >= len(ffns)]:
            raise ModelError(f"the task counts in layer {odd[0]}, the sub-FM has {len(ffns)}")
        counted = {layer: ffns[layer] for layer in task.apoz_layers}
        hidden = self.run.dp is not None
        if hidden:
            self.budget.require_sum(self.run, task.round)
        update = fine_tune(
            self._adapted,
            TensorFile.foreign(adapter).load(),
            self._dataset,
            self.run.training,
            factor=task.learning_rate_factor,
            seed=seeds.derive(self.run.seed, "train", self.worker, task.round) % 2**62,
            counter=ZeroCounter(counted, task.zero_rule, task.zero_threshold),
            on_step=(lambda step, steps, loss: on_step(step, steps, 0.0)) if hidden else on_step,
        )
        # No noise hides it.
        return replace(update, loss=0.0) if hidden else update

    @property
    def _by_example(self) -> bool:
        return self.run.dp is not None and self.run.dp.unit is DpUnit.EXAMPLE

    def pay(self, task: TrainTask, key: Callable[[], bytes]) -> float:
        """Before an update leaves that noise hides; `key` is what its own share of the noise is drawn by.
        Returns what has been paid up to now. Raises BudgetSpent, StoreError."""
        if self.run.dp is not None and not self._by_example:
            self.budget.charge_sum(self.run, task.round, key())
        return self.budget.spent

    def _train_privately(self, task: TrainTask, adapter: Path, on_step: OnStep) -> LocalUpdate:
        """The same under differential privacy, paid for before it begins. Raises BudgetSpent, StoreError."""
        assert self._adapted is not None and self._dataset is not None
        values = sum(parameter.numel() for parameter in self._adapted.parameter_groups().all)
        return fine_tune_privately(
            self._adapted,
            TensorFile.foreign(adapter).load(),
            self._dataset,
            self.run.training,
            self.budget.charge(self.run, task.round, len(self._dataset), values),
            factor=task.learning_rate_factor,
            on_step=on_step,
        )

    def score(self, adapter: Path, on_progress: Callable[[int, int], None]) -> ScoreSums:
        """The sums on what is kept aside, with the adapter in the file.

        Raises CannotTrain when nothing is, or when scores are no numbers.
        """
        # It brings torchmetrics, which takes a second and more.
        from common.model.scores import score_sums

        assert self._adapted is not None
        if self._validation is None or self._data.validation is None:
            raise CannotTrain("keeps no examples aside")
        self._adapted.load(TensorFile.foreign(adapter).load())
        task, model = self.run.task, self._adapted.model
        examples = len(self._data.validation)
        return score_sums(model, self._validation, examples, task.kind, task.labels, on_progress)

    def adapter(self) -> dict[str, Tensor]:
        """The adapter in the model now."""
        assert self._adapted is not None
        return self._adapted.tensors()
