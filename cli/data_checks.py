"""What `fedpft doctor` looks at in data: rows and pictures, the model's tokenizer, the run's classes.

All of it is what the coordinator and the worker do themselves, later.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cli.checks import Finding
from common.address import Address
from common.config.run import RunConfig
from common.data.answers import names_in
from common.data.batches import ConversationDataset, Dataset, TaggedDataset, TextDataset
from common.data.encoding import encode
from common.data.examples import Examples
from common.data.inspection import classes_of, inspected
from common.data.processors import load_processor
from common.errors import DataError, FedPftError, PeerError, Unreachable
from common.records import RunSpec, TaskKind
from common.task_forms import FORMS
from common.trust.identity import Role
from common.trust.tls import open_tls
from coordinator.modelling.checks import check_run
from coordinator.modelling.foundation import foundation_of
from worker.connection import Endpoint
from worker.data import PrivateData, held_out
from worker.description import describe_run

_SECONDS = 10.0
_MUCH_UNKNOWN = 0.1
_CLASSES_SHOWN = 10


def data(what: str, read: Callable[[], Examples], fix: str) -> tuple[Finding, Examples | None]:
    """Whether data can be read, to the last row and the last image. Also gives the examples."""
    try:
        examples = inspected(read(), thorough=True)
    except FedPftError as error:
        return Finding(what, str(error), fix), None
    classes = f": {classes_of(examples)}" if examples.labelled else ""
    return Finding(what, f"{len(examples):,} examples{classes}", notes=examples.notes), examples


def with_some_labels(config: RunConfig, test: Examples | None) -> RunConfig:
    """Where workers will be asked for their classes: those of the test data, or two that stand for them."""
    if not config.task.asks:
        return config
    there = sorted(set(names_in(test, config.task.kind))) if test is not None else []
    return config.with_labels(tuple(there if len(there) > 1 else ("0", "1")))


def read_by_model(config: RunConfig, found: Mapping[str, Examples]) -> tuple[Finding, list[Dataset]]:
    """Whether the model's tokenizer or image processor reads the owner's data, and its labels are the run's.

    `found` are examples by what they are for; those with labels are test data. Also gives what was read.
    """
    task = config.task
    what = "image processor" if task.kind is TaskKind.IMAGE_CLASSIFICATION else "tokenizer"
    notes, read = [], []
    try:
        processor = load_processor(config.model.path, task.kind)
        for name, examples in found.items():
            labels = task.labels if examples.labelled else None
            dataset = encode(processor, examples, task.kind, task.max_length, labels)
            dataset.batch([0])
            read.append(dataset)
            if (
                isinstance(dataset, TextDataset | TaggedDataset)
                and (share := _unknown(dataset)) > _MUCH_UNKNOWN
            ):
                notes.append(f"{name}: {100 * share:.0f} % of the tokens are unknown to the model")
            if isinstance(dataset, ConversationDataset):
                notes += dataset.notes
            cut = sum(length >= task.max_length for length in dataset.lengths or ())
            if cut and task.kind is not TaskKind.CAUSAL_LM:
                texts = f"{cut:,} of {len(dataset):,} texts"
                notes.append(f"{name}: {texts} reach task.max_length = {task.max_length}, and are cut there")
    except DataError as error:
        return Finding(what, str(error), "mend the data, or task.labels in the configuration"), []
    except FedPftError as error:
        return Finding(
            what, str(error), "complete the model's folder, or set model.path to another model"
        ), []
    return Finding(what, f"reads {' and '.join(found)}", notes=tuple(notes)), read


def weights_of(config: RunConfig, datasets: Sequence[Dataset]) -> Finding:
    """Whether the weights are whole and fit, and the model answers here and at workers alike: what the run
    tries at its start. Takes the memory that the model takes."""
    try:
        loaded = foundation_of(config)
        loaded.model.to(config.compute.device)  # type: ignore[arg-type]  # mistyped in transformers 5
        check_run(loaded, config, datasets)
    except FedPftError as error:
        return Finding("weights", str(error), "mend the model's folder or the configuration's key named here")
    size = sum(parameter.numel() for parameter in loaded.model.parameters())
    new = f"; new beside the head: {', '.join(loaded.new_modules)}" if loaded.new_modules else ""
    return Finding("weights", f"{size / 1e6:,.1f} M parameters, read alike here and at workers{new}")


def _unknown(dataset: TextDataset | TaggedDataset) -> float:
    """The share of unknown tokens among those that are text."""
    unknown = dataset.tokenizer.unk_token_id
    marks = set(dataset.tokenizer.all_special_ids) - {unknown}
    tokens = [token for row in dataset.rows for token in row["input_ids"] if token not in marks]
    return tokens.count(unknown) / len(tokens) if tokens and unknown is not None else 0.0


def run_of(address: Address, tls: Path | None, name: str | None) -> tuple[Finding, RunSpec | None]:
    """The run that the coordinator serves, and whether it admits this worker; it is not entered."""
    try:
        opened = open_tls(tls, Role.WORKER)
        name = name or (opened.identity.name if opened else socket.gethostname().partition(".")[0])
        run = asyncio.run(describe_run(Endpoint(address, _SECONDS, opened), name))
    except PeerError:
        return Finding("run", "the coordinator is of a version that does not describe its run"), None
    except Unreachable as error:
        return Finding("run", str(error), "see the checks of port and TLS; then ask the owner"), None
    except FedPftError as error:
        return Finding("run", str(error), "ask the owner to admit this worker, or give its --name"), None
    told = f"{run.task.kind} in run {run.run_id}"
    if run.asks_classes:
        told += ", which asks workers for the names and numbers of their classes before they join"
    if classes := run.task.labels:
        more = "" if len(classes) <= _CLASSES_SHOWN else f" and {len(classes) - _CLASSES_SHOWN:,} more"
        told += f", classes {', '.join(classes[:_CLASSES_SHOWN])}{more}"
    return Finding("run", told), run


def share(examples: Examples, aside: float) -> Finding:
    """Whether this share of the examples can be kept aside."""
    what = "validation share"
    try:
        rest, kept = held_out(examples, aside, "")
    except DataError as error:
        return Finding(what, str(error), "choose another share, or give a file of its own by --validation")
    return Finding(what, f"{len(kept):,} examples are kept aside, {len(rest):,} are trained on")


def fits(run: RunSpec, examples: Examples, what: str = "data for the run") -> Iterator[Finding]:
    """Whether the data are of the run's form, and their labels its classes."""
    told = run.task.labels
    if run.asks_classes and not told:
        try:
            PrivateData(examples).require_form(run.task)
        except DataError as error:
            yield Finding(what, str(error), "correct the options that name its columns")
            return
        yield Finding(what, f"their form is the run's; it would be told: {classes_of(examples)}")
        return
    if not told and FORMS[run.task.kind].named:
        yield Finding(what, "the run has too many classes to be told of them before joining")
        return
    try:
        PrivateData(examples).require(run.task)
    except DataError as error:
        yield Finding(
            what, str(error), "correct the labels in the file, or the options that name its columns"
        )
        return
    there = set(names_in(examples, run.task.kind))
    missing = [label for label in told if label not in there]
    notes = (f"no example of {len(missing):,} of the run's {len(told):,} classes",) if missing else ()
    yield Finding(what, "their form and labels are the run's", notes=notes)
