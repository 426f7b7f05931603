"""The sub-FM on the worker, kept at the version that the task names. Blocking: runs in the compute thread."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from common import seeds
from common.batches import Dataset
from common.errors import ModelError
from common.files import write_atomically
from common.model.adapter import Adapted
from common.model.families import family_named, ffns_of
from common.model.submodel import apply_patch, build
from common.records import ArtifactKind, ArtifactRef, RunSpec, SubModelRef
from common.tensors import TensorFile
from worker.data import PrivateData
from worker.train import LocalUpdate, OnStep, fine_tune

# The only names under which something from the wire is written: chosen here, not there.
_TOKENIZER_NAMES = {
    ArtifactKind.TOKENIZER: "tokenizer.json",
    ArtifactKind.TOKENIZER_CONFIG: "tokenizer_config.json",
}

Files = Mapping[str, Path]


@dataclass
class Workbench:
    """Model, tokenised data and training of one run on one worker."""

    worker: str
    run: RunSpec
    data: PrivateData
    folder: Path
    device: torch.device
    _adapted: Adapted | None = None
    _dataset: Dataset | None = None
    _base: ArtifactRef | None = None
    _patches: tuple[ArtifactRef, ...] = ()

    def lacks(self, wanted: SubModelRef) -> list[ArtifactRef]:
        """Artifacts to fetch before `equip` can bring the sub-FM to the version wanted."""
        if self._continues(wanted):
            return list(wanted.patches[len(self._patches) :])
        return [wanted.base, *wanted.patches, *wanted.tokenizer]

    def _continues(self, wanted: SubModelRef) -> bool:
        known = self._patches
        return self._base == wanted.base and wanted.patches[: len(known)] == known

    def equip(self, wanted: SubModelRef, files: Files) -> None:
        """Bring the sub-FM to the version wanted; `files` maps digests of what `lacks` named to files.

        Raises ModelError, UnsupportedFamily, BadUpdate when they do not fit together.
        """
        if self._continues(wanted):
            assert self._adapted is not None
            missing = wanted.patches[len(self._patches) :]
        else:
            config = _config(wanted.config_json, self.run.task.labels)
            weights = TensorFile(files[wanted.base.sha256]).load()
            module = build(config, wanted.ffn_widths, weights, self.device)
            self._adapted = Adapted(module, self.run.adapter)
            self._dataset = self.data.encoded(self._tokenizer(wanted, files), self.run.task)
            self._base, missing = wanted.base, wanted.patches
        for patch in missing:
            apply_patch(ffns_of(self._adapted.base), TensorFile(files[patch.sha256]))
        self._patches = wanted.patches

    def train(
        self,
        adapter: Path,
        round_number: int,
        factor: float,
        count_layers: tuple[int, ...],
        on_step: OnStep,
    ) -> LocalUpdate:
        """A round's local fine-tuning from the adapter in the file."""
        assert self._adapted is not None and self._dataset is not None
        return fine_tune(
            self._adapted,
            TensorFile(adapter).load(),
            self._dataset,
            self.run.training,
            factor=factor,
            seed=seeds.derive(self.run.seed, "train", self.worker, round_number) % 2**62,
            count_layers=count_layers,
            on_step=on_step,
        )

    def adapter(self) -> dict[str, Tensor]:
        """The adapter in the model now."""
        assert self._adapted is not None
        return self._adapted.tensors()

    def _tokenizer(self, wanted: SubModelRef, files: Files) -> PreTrainedTokenizerBase:
        folder = self.folder / "tokenizer"
        for ref in wanted.tokenizer:
            name = _TOKENIZER_NAMES.get(ref.kind)
            if name is None:
                raise ModelError(f"a tokenizer file cannot be of kind {ref.kind}")
            write_atomically(folder / name, files[ref.sha256].read_bytes())
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ModelError(f"the run's tokenizer cannot be loaded: {error}") from error
        return tokenizer


def _config(config_json: str, labels: tuple[str, ...]) -> PretrainedConfig:
    try:
        fields: dict[str, Any] = json.loads(config_json)
        model_type = str(fields.pop("model_type"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the run's model configuration is not readable: {error}") from error
    family_named(model_type)
    config: PretrainedConfig = AutoConfig.for_model(model_type, **fields)
    if len(labels) != config.num_labels:
        raise ModelError(f"the model has {config.num_labels} classes, the task {len(labels)}")
    return config
