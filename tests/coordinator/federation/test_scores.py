"""Workers' scores as they come to count, over real sockets: asked for, judged, on disk, summed."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.address import Address
from common.errors import BadMessage, BadScores, LateUpdate, NotSelected, StaleRound, UnknownRound
from common.model.scores import score_sums
from common.records import (
    Activity,
    ArtifactKind,
    EvaluateTask,
    JoinRequest,
    Progress,
    ScoreSums,
    SubmittedScores,
    SubModelRef,
    Task,
    TaskKind,
    WaitTask,
)
from common.run_status import ModelFacts
from common.transport.rpc import new_server
from coordinator.campaign.progress import RunProgress
from coordinator.campaign.status import live_status
from coordinator.campaign.worker_gathering import WorkerGathering
from coordinator.federation.inbox import Inbox
from coordinator.federation.rounds import Outcome
from coordinator.federation.service import FederationService, serve_federation
from coordinator.federation.sessions import Sessions
from coordinator.storage.rewinding import rewind
from coordinator.storage.store import Store
from tests.common.model.test_scores import Echo, Rows
from tests.contexts import context
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.metrics import Metrics as WorkerMetrics

LABELS = ("no", "yes")
EXAMPLES = 6


def sums(seed: int, examples: int = EXAMPLES) -> ScoreSums:
    draw = torch.Generator().manual_seed(seed)
    rows = Rows(torch.randn(examples, 2, generator=draw), torch.randint(0, 2, (examples,), generator=draw))
    return score_sums(Echo(), rows, examples, TaskKind.TEXT_CLASSIFICATION, LABELS)


class Scored:
    """A run whose first adapter workers are to score."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.store = Store(folder / "run")
        given = {
            "validation.every": 1,
            "rounds.workers": 2,
            "rounds.grace_seconds": 0.3,
            "validation.deadline_seconds": 20.0,
        } | {key.replace("__", "."): value for key, value in settings.items()}
        self.run = context(self.store, given)
        if self.store.sub_model() is None:
            base = self.store.artifacts.add_tensors(ArtifactKind.SUB_MODEL, {"x": torch.zeros(2)})
            plan = self.store.artifacts.add_tensors(ArtifactKind.PLAN, {"x": torch.ones(2)})
            self.store.commit_sub_model(
                SubModelRef("{}", (8,), base, (), ()), plan, ModelFacts(1, 1, 1, 1, 1, 1)
            )
            adapter = self.store.artifacts.add_tensors(ArtifactKind.ADAPTER, {"x": torch.full((2,), 2.0)})
            self.store.commit_adapter(0, adapter)
        latest = self.store.latest_adapter()
        assert latest is not None
        self.adapter = latest[1]
        self.sessions = Sessions(5.0)
        self.inbox = Inbox(self.store)
        self.progress = RunProgress(self.run)
        self.gathering = WorkerGathering(self.run, self.progress, self.sessions, self.inbox)
        self.clients: list[CoordinatorClient] = []

    async def start(self) -> None:
        self.server, self.address = new_server(Address("127.0.0.1", 0))
        serve_federation(self.server, FederationService(self.run, self.sessions, self.inbox))
        await self.server.start()

    async def worker(self, name: str, protocol: int = 5, validation: int = EXAMPLES) -> CoordinatorClient:
        joining = JoinRequest(name, 1, protocol, "test", 9, validation=validation)
        client = CoordinatorClient(Endpoint(self.address, 0.5), joining, WorkerMetrics())
        await client.join()
        self.clients.append(client)
        return client

    def validate(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.gathering.validate(SimpleNamespace(), 0, self.adapter))  # type: ignore[arg-type]

    def answer(self, seed: int = 1, number: int = 0) -> SubmittedScores:
        return SubmittedScores("", number, self.adapter.sha256, sums(seed))

    async def stop(self) -> None:
        for client in self.clients:
            await client.close()
        self.sessions.close()
        self.run.events.close()
        await self.server.stop(0.2)
        self.store.close()

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.store.events.all()]


@pytest.fixture
async def scored(tmp_path: Path) -> AsyncIterator[Scored]:
    running = Scored(tmp_path)
    await running.start()
    yield running
    await running.stop()


async def next_task(client: CoordinatorClient) -> Task:
    async for task in client.tasks():
        return task
    raise AssertionError


async def asked(client: CoordinatorClient) -> EvaluateTask:
    async with asyncio.timeout(10):
        async for task in client.tasks():
            if isinstance(task, EvaluateTask):
                return task
    raise AssertionError


async def test_scores_are_summed_and_no_workers_own_is_kept(scored: Scored) -> None:
    a, b = await scored.worker("a"), await scored.worker("b")
    work = scored.validate()
    task = await asked(a)
    assert task.round == 0 and task.adapter == scored.adapter and 0 < task.seconds_left <= 20
    assert await a.submit_scores(scored.answer(1)) is False
    assert (
        live_status(scored.run, scored.progress, scored.sessions, scored.inbox).waiting_for == "scores of b"
    )
    assert scored.store.validations.scores(0).keys() == {"a"}, "a receipt means that they are on disk"
    assert await b.submit_scores(scored.answer(2)) is False
    await work
    (told,) = scored.store.validations.all()
    assert (told.workers, told.examples, told.worker) == (2, 2 * EXAMPLES, "")
    assert told.loss == (sums(1).loss + sums(2).loss) / (2 * EXAMPLES)
    assert scored.store.validations.scores(0) == {}
    assert scored.kinds.count("scores_received") == 2 and "validated" in scored.kinds
    # Done is done.
    await scored.validate()
    assert scored.kinds.count("validated") == 1


async def test_delivering_scores_twice_is_harmless_also_when_they_are_summed(scored: Scored) -> None:
    a, b = await scored.worker("a"), await scored.worker("b")
    work = scored.validate()
    await asked(a)
    assert await a.submit_scores(scored.answer(1)) is False
    assert await a.submit_scores(scored.answer(1)) is True
    # Another answer takes the place of the first while it is asked for.
    assert await a.submit_scores(scored.answer(3)) is False
    assert await b.submit_scores(scored.answer(2)) is False
    await work
    assert await b.submit_scores(scored.answer(2)) is True
    (told,) = scored.store.validations.all()
    assert told.loss == (sums(3).loss + sums(2).loss) / (2 * EXAMPLES)


async def test_what_is_not_asked_for_is_refused_and_the_round_goes_on(scored: Scored) -> None:
    a, b = await scored.worker("a"), await scored.worker("b")
    with pytest.raises(StaleRound, match="not asked for"):
        await a.submit_scores(scored.answer())
    work = scored.validate()
    await asked(a)
    late = await scored.worker("late")
    with pytest.raises(NotSelected):
        await late.submit_scores(scored.answer())
    with pytest.raises(UnknownRound):
        await a.submit_scores(scored.answer(number=3))
    for client, seed in ((a, 1), (b, 2)):
        await client.submit_scores(scored.answer(seed))
    await work
    with pytest.raises(LateUpdate):
        await late.submit_scores(scored.answer())
    assert "scores_refused" in scored.kinds


BAD = {
    "NaN": lambda s: replace(s, scores=replace(s.scores, loss=math.nan)),
    "counts above the examples": lambda s: replace(
        s, scores=replace(s.scores, counts=(99, *s.scores.counts[1:]))
    ),
    "other classes": lambda s: replace(s, scores=replace(s.scores, counts=(*s.scores.counts, 0))),
    "other examples": lambda s: replace(s, scores=sums(1, EXAMPLES + 1)),
    "another adapter": lambda s: replace(s, adapter_sha256="0" * 64),
}


@pytest.mark.parametrize("what", BAD)
async def test_scores_that_cannot_be_end_the_workers_turn(scored: Scored, what: str) -> None:
    a, b = await scored.worker("a"), await scored.worker("b")
    work = scored.validate()
    await asked(a)
    with pytest.raises(BadScores):
        await a.submit_scores(BAD[what](scored.answer(1)))
    state = scored.inbox.state
    assert state is not None and state.over["a"].outcome is Outcome.REFUSED
    await b.submit_scores(scored.answer(2))
    await asyncio.wait_for(work, 5)
    # One worker's alone is not told.
    (told,) = scored.store.validations.all()
    assert told.workers == 0 and math.isnan(told.loss) and "validation_short" in scored.kinds


async def test_workers_of_an_older_protocol_or_without_examples_are_not_asked(scored: Scored) -> None:
    old, without = await scored.worker("old", protocol=4), await scored.worker("without", validation=0)
    a, b = await scored.worker("a"), await scored.worker("b")
    work = scored.validate()
    await asked(a)
    assert isinstance(await next_task(old), WaitTask) and isinstance(await next_task(without), WaitTask)
    state = scored.inbox.state
    assert state is not None and state.selected == {"a", "b"}
    for client, seed in ((a, 1), (b, 2)):
        await client.submit_scores(scored.answer(seed))
    await asyncio.wait_for(work, 5)
    assert scored.store.validations.all()[0].workers == 2


async def test_without_anybody_who_can_the_run_goes_on_at_once(scored: Scored) -> None:
    await scored.worker("a", validation=0)
    await scored.worker("b", protocol=4)
    await asyncio.wait_for(scored.validate(), 5)
    (told,) = scored.store.validations.all()
    assert told.workers == 0


async def test_every_outcome_ends_the_waiting(scored: Scored) -> None:
    clients = {name: await scored.worker(name) for name in ("a", "b", "cannot", "lost", "left")}
    work = scored.validate()
    task = await asked(clients["a"])
    scored.inbox.turns.lost("lost")
    await clients["left"].leave("bye")
    trouble = Progress(Activity.IDLE, 0, trouble="out of memory", attempt=task.attempt)
    await clients["cannot"].heartbeat(trouble)
    for name, seed in (("a", 1), ("b", 2)):
        await clients[name].submit_scores(scored.answer(seed))
    await asyncio.wait_for(work, 5)
    assert scored.store.validations.all()[0].workers == 2


async def test_trouble_with_the_rounds_training_is_not_taken_for_trouble_with_its_scoring(
    tmp_path: Path,
) -> None:
    scored = Scored(tmp_path)
    scored.store.open_try(0, ["a", "b"])
    await scored.start()
    a, b = await scored.worker("a"), await scored.worker("b")
    work = scored.validate()
    assert (await asked(a)).attempt == 2
    await a.heartbeat(Progress(Activity.IDLE, 0, trouble="training diverged", attempt=1))
    for client, seed in ((a, 1), (b, 2)):
        await client.submit_scores(scored.answer(seed))
    await work
    assert scored.store.validations.all()[0].workers == 2
    await scored.stop()


async def test_a_worker_that_returns_without_its_examples_is_not_waited_for(scored: Scored) -> None:
    a, b = await scored.worker("a"), await scored.worker("b")
    work = scored.validate()
    await asked(a)
    await a.close()
    again = await scored.worker("a", protocol=4)
    assert isinstance(await next_task(again), WaitTask)
    await b.submit_scores(scored.answer(2))
    await asyncio.wait_for(work, 5)
    assert scored.store.validations.validators() == {"b": EXAMPLES}


async def test_a_restarted_coordinator_goes_on_with_whom_it_had_asked(tmp_path: Path) -> None:
    before = Scored(tmp_path)
    await before.start()
    a, _ = await before.worker("a"), await before.worker("b")
    work = before.validate()
    await asked(a)
    await a.submit_scores(before.answer(1))
    work.cancel()
    await before.stop()
    after = Scored(tmp_path)
    await after.start()
    await after.worker("c")
    b = await after.worker("b")
    work = after.validate()
    assert (await asked(b)).attempt == 2
    state = after.inbox.state
    assert state is not None and state.selected == {"a", "b"} and state.received == {"a"}
    await b.submit_scores(after.answer(2))
    await asyncio.wait_for(work, 5)
    (told,) = after.store.validations.all()
    assert told.workers == 2 and told.loss == (sums(1).loss + sums(2).loss) / (2 * EXAMPLES)
    await after.stop()


async def test_each_workers_own_score_is_kept_where_the_run_says_so(tmp_path: Path) -> None:
    scored = Scored(tmp_path, validation__per_worker=True)
    await scored.start()
    a, b = await scored.worker("a"), await scored.worker("b")
    work = scored.validate()
    await asked(a)
    for client, seed in ((a, 1), (b, 2)):
        await client.submit_scores(scored.answer(seed))
    await work
    told = {v.worker: v.loss for v in scored.store.validations.all()}
    assert told["a"] == sums(1).loss / EXAMPLES and told["b"] == sums(2).loss / EXAMPLES and "" in told
    rewind(scored.store, 0)
    assert len(scored.store.validations.all()) == 3
    await scored.stop()


async def test_more_examples_aside_than_the_limit_are_refused_at_joining(tmp_path: Path) -> None:
    scored = Scored(tmp_path, limits__examples=100)
    await scored.start()
    with pytest.raises(BadMessage, match=r"limits\.examples"):
        await scored.worker("a", validation=101)
    await scored.stop()


async def test_updates_are_late_while_their_round_is_scored(scored: Scored) -> None:
    a, b = await scored.worker("a"), await scored.worker("b")
    work = scored.validate()
    await asked(a)
    state = scored.inbox.state
    assert state is not None
    with pytest.raises(LateUpdate, match="is being scored"):
        scored.inbox._require_open(state, "a")
    for client, seed in ((a, 1), (b, 2)):
        await client.submit_scores(scored.answer(seed))
    await work
