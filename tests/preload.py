"""What the fork server of tests.services imports once, so that no process has to."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A library that starts threads as it is imported would leave its locks behind in a fork.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import gc

import peft  # noqa: F401
import torch
import transformers.models.bert.modeling_bert
import transformers.models.bert.tokenization_bert  # noqa: F401

import cli.main
import coordinator.cli
import coordinator.process
import worker.cli
import worker.process  # noqa: F401

torch.set_num_threads(1)
# What is here stays, in every fork: the collector need not look at it, nor copy its pages.
gc.freeze()
