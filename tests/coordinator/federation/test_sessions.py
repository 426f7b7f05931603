"""Who is there, and what each owes."""

import asyncio
from dataclasses import replace

import pytest

from common.errors import NameTaken, ProtocolMismatch, SessionReplaced, UnknownSession, Unreachable
from common.protocol import PROTOCOL_MAX
from common.records import (
    Activity,
    ArtifactKind,
    ArtifactRef,
    JoinRequest,
    Progress,
    StopTask,
    SubModelRef,
    Task,
    TrainTask,
    WaitTask,
    ZeroRule,
)
from coordinator.federation.sessions import REMEMBERED_REPLACEMENTS, Assignment, Session, Sessions


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def sessions(clock: Clock) -> Sessions:
    return Sessions(heartbeat_seconds=1.0, clock=clock)


def join(sessions: Sessions, worker: str = "w", lowest: int = 1, highest: int = 1) -> Session:
    return sessions.join(JoinRequest(worker, lowest, highest, "test", 10))[0]


async def collect(sessions: Sessions, session: Session, tasks: list[Task]) -> None:
    async for task in sessions.tasks(session):
        tasks.append(task)


@pytest.mark.parametrize(
    ("lowest", "highest", "side"),
    [(PROTOCOL_MAX + 1, PROTOCOL_MAX + 2, "upgrade the coordinator"), (0, 0, "upgrade the worker")],
)
async def test_a_protocol_mismatch_says_which_side_to_upgrade(
    sessions: Sessions, lowest: int, highest: int, side: str
) -> None:
    with pytest.raises(ProtocolMismatch, match=side):
        join(sessions, lowest=lowest, highest=highest)


async def test_joining_again_replaces_the_earlier_session(sessions: Sessions) -> None:
    first, second = join(sessions), join(sessions)
    with pytest.raises(SessionReplaced, match="--name"):
        sessions.find(first.token)
    assert sessions.find(second.token) is second
    assert sessions.present() == ["w"]


async def test_an_unknown_session_is_told_to_join(sessions: Sessions) -> None:
    with pytest.raises(UnknownSession, match="join again"):
        sessions.find("made up")


async def test_a_silent_worker_is_lost_once_and_returns_when_heard(sessions: Sessions, clock: Clock) -> None:
    session = join(sessions)
    clock.now = 2.9
    assert sessions.sweep() == []
    clock.now = 3.1
    assert sessions.sweep() == ["w"]
    assert sessions.sweep() == []
    assert sessions.present() == []
    assert sessions.report(sessions.find(session.token), Progress(Activity.IDLE))
    assert sessions.present() == ["w"]


async def test_tasks_are_pushed_once_each_and_end_with_stop(sessions: Sessions) -> None:
    session, tasks = join(sessions), list[Task]()
    watching = asyncio.create_task(collect(sessions, session, tasks))
    await asyncio.sleep(0)
    sessions.assign("w", Assignment(WaitTask("first")))
    await asyncio.sleep(0)
    join(sessions, "somebody else")
    await asyncio.sleep(0)
    sessions.assign_all(StopTask(True, "over"))
    await watching
    assert tasks[1:] == [WaitTask("first"), StopTask(True, "over")]


async def test_a_worker_that_comes_back_is_told_again_what_it_owes(sessions: Sessions) -> None:
    join(sessions)
    sessions.assign("w", Assignment(WaitTask("yours")))
    again = join(sessions)
    assert await anext(sessions.tasks(again)) == WaitTask("yours")


async def test_another_workers_task_does_not_wake_a_stream(sessions: Sessions) -> None:
    mine, other = join(sessions, "mine"), join(sessions, "other")
    woken = asyncio.create_task(mine.tasked.wait())
    await asyncio.sleep(0)
    sessions.assign("other", Assignment(WaitTask("for other")))
    join(sessions, "third")
    await asyncio.sleep(0)
    assert not woken.done()
    sessions.assign("mine", Assignment(WaitTask("for mine")))
    await asyncio.wait_for(woken, 1)
    assert not other.replaced


async def test_the_task_that_all_have_already_wakes_nobody(sessions: Sessions) -> None:
    sessions.assign_all(WaitTask("for others"))
    woken = asyncio.create_task(join(sessions).tasked.wait())
    await asyncio.sleep(0)
    sessions.assign_all(WaitTask("for others"))
    await asyncio.sleep(0)
    assert not woken.done()
    sessions.assign("w", Assignment(WaitTask("yours")))
    await asyncio.wait_for(woken, 1)
    sessions.assign_all(WaitTask("for others"))
    assert await anext(sessions.tasks(join(sessions))) == WaitTask("for others")


async def test_streams_end_as_unreachable_when_the_process_is_about_to_end(sessions: Sessions) -> None:
    watching = asyncio.create_task(collect(sessions, join(sessions), []))
    await asyncio.sleep(0)
    sessions.close()
    with pytest.raises(Unreachable):
        await watching


@pytest.mark.parametrize(("now", "left"), [(0.0, 60.0), (45.0, 15.0), (80.0, 0.0)])
async def test_a_training_task_is_given_as_it_is_but_for_the_time_that_is_left(
    sessions: Sessions, clock: Clock, now: float, left: float
) -> None:
    base = ArtifactRef(ArtifactKind.SUB_MODEL, "0" * 64, 1)
    reference = SubModelRef("{}", (8,), base, (), ())
    task = TrainTask(1, reference, base, 0.5, (0,), 60.0, 2, ZeroRule.NEAR_ZERO, 0.25)
    sessions.assign("w", Assignment(task, closes_at=60.0))
    clock.now = now
    given = await anext(sessions.tasks(join(sessions)))
    assert given == replace(task, seconds_left=left)


async def test_a_stream_that_this_process_wakes_does_not_keep_a_silent_worker_alive(
    sessions: Sessions, clock: Clock
) -> None:
    tasks = list[Task]()
    watching = asyncio.create_task(collect(sessions, join(sessions), tasks))
    for second in range(4):
        clock.now = float(second)
        sessions.assign_all(WaitTask(str(second)))
        await asyncio.sleep(0)
    clock.now = 3.1
    assert sessions.sweep() == ["w"]
    watching.cancel()


async def test_replaced_sessions_leave_memory_and_flapping_is_news_once_an_interval(
    sessions: Sessions, clock: Clock
) -> None:
    news = 0
    first = join(sessions)
    for _ in range(3 * REMEMBERED_REPLACEMENTS):
        clock.now += 0.01
        news += join(sessions).first_for_a_while
    assert len(sessions._by_token) == 1
    assert len(sessions._replaced) == REMEMBERED_REPLACEMENTS
    assert 28 <= news <= 30
    # Long forgotten, it is told to join, and then learns that the name is taken.
    with pytest.raises(UnknownSession):
        sessions.find(first.token)


async def watched(sessions: Sessions, session: Session) -> asyncio.Task[None]:
    """Its stream of tasks, open as long as its process lives."""
    watching = asyncio.create_task(collect(sessions, session, []))
    await asyncio.sleep(0)
    return watching


def asking(process: str = "") -> JoinRequest:
    return JoinRequest("w", 1, 1, "test", 10, process)


async def test_a_name_that_is_at_work_is_refused_as_soon_as_its_process_is_heard(sessions: Sessions) -> None:
    session = join(sessions)
    watching = await watched(sessions, session)
    asked = asyncio.create_task(sessions.require_only(asking("another")))
    await asyncio.sleep(0.01)
    # That it takes what is sent to it is no sign: a line buffers.
    sessions.find(session.token, spoke=False)
    await asyncio.sleep(0.01)
    assert not asked.done()
    sessions._clock.now += 0.1  # type: ignore[attr-defined]
    sessions.find(session.token)
    with pytest.raises(NameTaken, match="its own --name and its own --folder"):
        await asked
    assert sessions.find(session.token) is session
    watching.cancel()


@pytest.mark.parametrize("end", ["its stream ends", "it leaves", "it is lost", "it joins"])
async def test_a_name_is_free_as_soon_as_its_process_is_gone(
    sessions: Sessions, clock: Clock, end: str
) -> None:
    session = join(sessions)
    watching = await watched(sessions, session)
    asked = asyncio.create_task(sessions.require_only(asking("another")))
    await asyncio.sleep(0.01)
    assert not asked.done()
    match end:
        case "its stream ends":
            watching.cancel()
        case "it leaves":
            sessions.leave(session)
        case "it is lost":
            clock.now = 3.1
            sessions.sweep()
        case "it joins":
            join(sessions)
    async with asyncio.timeout(1):
        await asked
    watching.cancel()


async def test_a_process_may_join_again_beside_itself(sessions: Sessions) -> None:
    session, _ = sessions.join(asking("the same"))
    watching = await watched(sessions, session)
    async with asyncio.timeout(1):
        await sessions.require_only(asking("the same"))
    watching.cancel()


async def test_a_restart_is_another_process_of_a_worker_that_had_not_left(sessions: Sessions) -> None:
    first, _ = sessions.join(asking("one"))
    again, _ = sessions.join(asking("one"))
    other, _ = sessions.join(asking("two"))
    old, _ = sessions.join(asking())
    older, _ = sessions.join(asking())
    sessions.leave(older)
    after, _ = sessions.join(asking("three"))
    restarted = [s.restarted for s in (first, again, other, old, older, after)]
    assert restarted == [False, False, True, True, True, False]


async def test_a_contested_name_is_news_once_a_minute_and_known_for_one(
    sessions: Sessions, clock: Clock
) -> None:
    news = []
    for second in (0.0, 1.0, 59.0, 60.0, 61.0):
        clock.now = second
        news.append(sessions.contest("w"))
    assert news == [True, False, False, True, False]
    assert sessions.contested() == ["w"]
    clock.now = 121.0
    assert sessions.contested() == []
