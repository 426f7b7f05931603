"""What only newer workers know is asked of no older one; everything else is."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import ProtocolMismatch
from common.protocol import PROTOCOL_MAX
from common.records import JoinRequest
from coordinator.federation.needs import require_protocol
from coordinator.storage.class_counts import StoredClasses
from coordinator.storage.store import Store
from tests.chats import write_chats
from tests.contexts import context
from tests.field.test_large_runs import Serving
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.metrics import Metrics

SGD = {"training.optimizer": "sgd"}
CHATS_TOLD = "this run's workers learn the answers of conversations alone, which protocol 4 does not know"
TOLD = "this run's workers train by SGD, which protocol 4 does not know: upgrade the worker"
NEURONS = "this run's workers tune FFN neurons in full, which protocol 4 does not know: upgrade the worker"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (SGD, TOLD),
        ({"adapter.targets": "neurons"}, NEURONS),
        ({"adapter.targets": "attention+neurons"}, NEURONS),
    ],
)
def test_what_is_new_needs_protocol_5_and_what_is_usual_none(
    settings: dict[str, str], told: str, tmp_path: Path
) -> None:
    asking, usual = (context(Store(tmp_path / str(len(s))), s).spec for s in (settings, {}))
    with pytest.raises(ProtocolMismatch) as caught:
        require_protocol(asking, 4)
    assert str(caught.value) == told
    require_protocol(asking, 5)
    require_protocol(usual, 1)


@pytest.mark.parametrize(
    "settings", [{"task.labels": "ask"}, {"training.class_weights": "balanced"}], ids=["ask", "balanced"]
)
def test_classes_are_asked_of_workers_that_know_the_question(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    store = Store(tmp_path / "run")
    run = context(store, settings)
    with pytest.raises(ProtocolMismatch, match="asks for workers' classes, which protocol 4 does not know"):
        require_protocol(run.spec, 4)
    require_protocol(run.spec, 5)
    run.settle(StoredClasses(("no", "yes"), (3, 1), 4, 2))
    # Who only has to know the labels may be of before; who has to weigh them may not.
    if "training.class_weights" in settings:
        with pytest.raises(ProtocolMismatch):
            require_protocol(run.spec, 4)
    else:
        require_protocol(run.spec, 4)
    store.close()


@pytest.mark.parametrize("newest", [4, PROTOCOL_MAX])
async def test_a_worker_of_before_does_not_join_a_run_of_sgd(newest: int, tmp_path: Path) -> None:
    serving = Serving(context(Store(tmp_path / "run"), SGD))
    await serving.start()
    joining = JoinRequest("w", 1, newest, "some", 5)
    worker = CoordinatorClient(Endpoint(serving.address, 1.0), joining, Metrics())
    try:
        if newest == PROTOCOL_MAX:
            assert (await worker.join()).run.training.optimizer == "sgd"
        else:
            with pytest.raises(ProtocolMismatch) as caught:
                await worker.join()
            assert TOLD in str(caught.value)
    finally:
        await worker.close()
        await serving.stop()


@pytest.mark.parametrize("newest", [4, PROTOCOL_MAX])
async def test_a_worker_of_before_does_not_join_a_run_of_conversations(newest: int, tmp_path: Path) -> None:
    settings = {
        "task.kind": "causal-lm",
        "task.labels": (),
        "data.test.path": write_chats(tmp_path / "test.jsonl", 2),
    }
    run = context(Store(tmp_path / "run"), settings)
    serving = Serving(run)
    await serving.start()
    worker = CoordinatorClient(
        Endpoint(serving.address, 1.0), JoinRequest("w", 1, newest, "some", 5), Metrics()
    )
    try:
        if newest == PROTOCOL_MAX:
            assert (await worker.join()).run.task.conversations
        else:
            with pytest.raises(ProtocolMismatch) as caught:
                await worker.join()
            assert f"{CHATS_TOLD}: upgrade the worker" in str(caught.value)
    finally:
        await worker.close()
        await serving.stop()
    plain = replace(run.spec, task=replace(run.spec.task, conversations=False), asks_targets=False)
    require_protocol(plain, 1)


def test_a_sub_fm_in_int8_needs_protocol_6(tmp_path: Path) -> None:
    asking = context(Store(tmp_path), {"sub_fm.quantization": "int8"}).spec
    with pytest.raises(ProtocolMismatch) as caught:
        require_protocol(asking, 5)
    assert str(caught.value) == (
        "this run's sub-FM is sent as int8, which protocol 5 does not know: upgrade the worker"
    )
    require_protocol(asking, 6)


def test_a_language_models_workers_are_to_tell_their_target_tokens(tmp_path: Path) -> None:
    language = {"task.kind": "causal-lm", "task.labels": ()}
    by_default = context(Store(tmp_path / "tokens"), language).spec
    assert by_default.asks_targets
    require_protocol(by_default, 6)
    with pytest.raises(ProtocolMismatch) as caught:
        require_protocol(by_default, 5)
    assert str(caught.value) == (
        "this run weighs workers by their target tokens, which protocol 5 does not tell (its owner may set "
        'aggregation.weights = "examples"): upgrade the worker'
    )
    by_examples = language | {"aggregation.weights": "examples"}
    require_protocol(context(Store(tmp_path / "examples"), by_examples).spec, 1)


def test_differential_privacy_needs_protocol_6(tmp_path: Path) -> None:
    private = context(Store(tmp_path / "run"), {"privacy.dp.unit": "example"}).spec
    with pytest.raises(
        ProtocolMismatch, match=r"add noise for differential privacy, which protocol 5 does not"
    ):
        require_protocol(private, 5)
    require_protocol(private, 6)
    require_protocol(replace(private, dp=None), 5)
