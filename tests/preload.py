"""What the fork server of tests.services imports once, so that no process has to."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A library that starts threads as it is imported would leave its locks behind in a fork.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import gc
from importlib import import_module

import torch
from transformers import CONFIG_MAPPING

from common.model.families import FAMILIES

for _module in (
    "peft",
    *(CONFIG_MAPPING[family].__module__.replace("configuration_", "modeling_") for family in FAMILIES),
    "transformers.models.bert.tokenization_bert",
    # Late in processes, since it takes seconds; torchmetrics and what it brings.
    "common.model.metrics",
    "cli.main",
    "coordinator.process",
    "worker.process",
):
    import_module(_module)

torch.set_num_threads(1)
# What is here stays, in every fork: the collector need not look at it, nor copy its pages.
gc.freeze()
