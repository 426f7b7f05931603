"""A coordinator that lies, with TLS: whatever it tells one worker, it hears no share that opens that worker's
update, and no update without masks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from cryptography import x509

from common.data.examples import Columns
from common.errors import (
    ClassesWanted,
    FedPftError,
    NotAllowed,
    SecureRefused,
    StaleRound,
    UnknownSession,
)
from common.records import Activity, EvaluateTask, RunSpec, StopTask, Task, TrainTask, UpdateHeader
from common.runtime.compute import InlineCompute
from common.secagg.news import Roster
from common.secagg.records import Endorsement, PublicKeys
from common.storage.tensors import write_tensors
from common.trust.identity import Role
from common.trust.signing import fingerprint
from common.trust.tls import open_tls
from tests.common.secagg.parties import flipped, with_entry
from tests.conftest import write_table
from tests.security.guarded import Certificates
from tests.security.liar import ADAPTER, ME, NAMES, RUN, SUB_MODEL, Liar, Scene, a_task
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.data import PrivateData, Source
from worker.local_model import Place
from worker.loop import Worker
from worker.metrics import Metrics
from worker.secure_policy import SecurePolicy

Told = Callable[[Scene], Awaitable[None]]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("foreign"))


@pytest_asyncio.fixture
async def scene(certificates: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    liar = Liar()
    made = Scene(certificates, liar, await liar.start(certificates), tmp_path)
    yield made
    await made.client.close()
    await liar.server.stop(None)


def opened(scene: Scene) -> list[Any]:
    return scene.liar.contents(tuple)


async def refused(scene: Scene, news: Any, told: str) -> None:
    with pytest.raises(SecureRefused, match=told):
        await scene.desk.hear(news)


async def test_a_fair_coordinator_gets_one_share_of_each(scene: Scene) -> None:
    """What the following tests change one thing of."""
    roster = await scene.masked()
    await scene.desk.hear(scene.survivors("a", "b", "c"))
    await scene.desk.hear(scene.endorsed(scene.endorsements(roster, ("a", "b", "c"), ("a", "b", "c"))))
    ((shares,),) = [opened(scene)]
    assert [(o.about, str(o.kind)) for o in shares] == [
        ("a", "self"),
        ("b", "self"),
        ("c", "self"),
        ("d", "mask"),
    ]


# --- the roster ---

ROSTERS: dict[str, tuple[Callable[[Scene, list[PublicKeys]], Any], str]] = {
    "own keys changed": (
        lambda s, r: with_entry(r, ME, mask=flipped(r[0].mask, 3)),
        "shows other keys for a than this worker offered",
    ),
    "without this worker": (lambda s, r: r[1:], "does not hold this worker, a"),
    "too few": (lambda s, r: r[:2], "3 workers are needed, got 2"),
    "another's key changed": (
        lambda s, r: with_entry(r, "b", mask=s.keys_of("b").keys.mask),
        "worker b: its signature does not fit",
    ),
    "another's key unsigned": (lambda s, r: with_entry(r, "b", signature=b""), "shows no certificate and"),
    "one worker's keys for another": (
        lambda s, r: with_entry(r, "b", certificate=r[2].certificate),
        "its certificate is worker/c's",
    ),
    "a key twice": (
        lambda s, r: with_entry(r, "b", channel=r[2].channel, mask=r[2].mask),
        "c shows a key a second time",
    ),
    "keys of an earlier round": (
        lambda s, r: (r[0], s.keys_of("b", replace(s.within, round=0)).keys, *r[2:]),
        "worker b: its signature does not fit",
    ),
    "keys of an earlier try": (
        lambda s, r: (r[0], s.keys_of("b", replace(s.within, attempt=0)).keys, *r[2:]),
        "worker b: its signature does not fit",
    ),
    "keys for another adapter": (
        lambda s, r: (r[0], s.keys_of("b", replace(s.within, task_digest=b"x" * 32)).keys, *r[2:]),
        "worker b: its signature does not fit",
    ),
    "a worker that was not drawn": (lambda s, r: (*r, s.keys_of("e", replace(
        s.within, drawn=(*NAMES[:3], "e"), electorate=(*NAMES, "e"))).keys), "e cannot be among them"),
}  # fmt: skip


@pytest.mark.parametrize("case", ROSTERS)
async def test_no_shares_are_dealt_to_a_roster_that_is_not_true(case: str, scene: Scene) -> None:
    lie, told = ROSTERS[case]
    roster = await scene.keys()
    await refused(scene, scene.news(Roster(tuple(lie(scene, roster)))), told)
    assert [type(said.content) for said in scene.liar.said] == [PublicKeys]


async def test_keys_by_another_authority_are_nobodys(scene: Scene, foreign: Certificates) -> None:
    roster = await scene.keys()
    roster[1] = scene.keys_of("b", of=foreign).keys
    await refused(scene, scene.news(Roster(tuple(roster))), "not by this run's authority")


async def test_the_authoritys_owner_cannot_put_workers_of_its_own_among_pinned_peers(
    scene: Scene, certificates: Certificates
) -> None:
    """It has ca.key: it issues a certificate of b's name to itself, and keys that only it can open."""

    def pin(name: str) -> str:
        folder = certificates.folder / f"worker-{name}"
        return fingerprint(x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes()))

    roster = await scene.keys()
    sybil = certificates.issue(Role.WORKER, "b", "sybil")
    assert sybil.exists()
    roster[1] = scene.keys_of("b", of=_named(certificates, "sybil")).keys
    pins = {name: pin(name) for name in NAMES}
    pinned = Scene(certificates, scene.liar, scene.address, scene.folder, pins)
    try:
        await refused(
            pinned,
            scene.news(Roster(tuple(roster))),
            "worker b: its key is not the one that --peers has for it",
        )
        # Without pins it passes: what docs/security.md says of the authority's owner.
        await scene.desk.hear(scene.news(Roster(tuple(roster))))
        assert len(scene.liar.said) == 2
    finally:
        await pinned.client.close()


def _named(certificates: Certificates, out: str) -> Any:
    """Certificates among which worker b's is the one in the folder `out`."""

    class One:
        folder = certificates.folder / "of-the-sybil"

    One.folder.mkdir(exist_ok=True)
    (One.folder / "worker-b").symlink_to(certificates.folder / out)
    return One


async def test_shares_are_dealt_to_one_roster_only(scene: Scene) -> None:
    roster = await scene.dealt()
    other = (roster[0], scene.keys_of("b").keys, *roster[2:])
    await refused(scene, scene.news(Roster(other)), "another roster than before")
    scene.restart()
    await refused(scene, scene.news(Roster(other)), "another roster than before")
    assert len(scene.liar.said) == 2


# --- shares ---


async def test_shares_that_were_dealt_to_another_or_in_another_try_are_not_taken(scene: Scene) -> None:
    await scene.dealt()
    await refused(scene, scene.news(scene.sharers(to="d", names=("b", "c"))), "the shares that b dealt to a")
    true = scene.sharers()
    spoilt = replace(true, sealed=dict(true.sealed) | {"c": flipped(true.sealed["c"], 20)})
    await refused(scene, scene.news(spoilt), "the shares that c dealt to a: it does not decrypt")
    await refused(scene, scene.news(scene.sharers(("b",))), "3 workers are needed, got 2")
    assert not scene.desk.agreed
    await scene.desk.hear(scene.news(true))
    assert scene.desk.agreed


async def test_an_update_is_masked_for_one_set_of_sharers_only(scene: Scene) -> None:
    await scene.masked()
    before = (scene.folder / "secure" / "try" / "masked.safetensors").read_bytes()
    await refused(scene, scene.news(scene.sharers(("b", "c"))), "other sharers than before")
    scene.restart()
    await refused(scene, scene.news(scene.sharers(("b", "c"))), "other sharers than before")
    assert (scene.folder / "secure" / "try" / "masked.safetensors").read_bytes() == before


# --- survivors and endorsements ---


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("b", "c", "d"), "this worker, a, is not among them"),
        (("a", "b"), "3 workers are needed, got 2"),
        (("a",), "3 workers are needed, got 1"),
        (("a", "b", "c", "e"), "e cannot be among them"),
    ],
)
async def test_survivors_that_cannot_be_are_not_endorsed(
    names: tuple[str, ...], told: str, scene: Scene
) -> None:
    await scene.masked()
    await refused(scene, scene.survivors(*names), told)
    assert scene.liar.contents(Endorsement) == []


@pytest.mark.parametrize("restarted", [False, True])
async def test_of_two_sets_of_survivors_one_is_endorsed_and_none_else_opened(
    restarted: bool, scene: Scene
) -> None:
    """Two sums over sets that differ by one worker would tell that worker's update."""
    roster = await scene.masked()
    await scene.desk.hear(scene.survivors("a", "b", "c"))
    if restarted:
        scene.restart()
    await refused(scene, scene.survivors("a", "b", "d"), "other survivors than before")
    # Endorsed by the others, who were told so: this worker opens for what it has signed only.
    await scene.desk.hear(scene.survivors("a", "b", "c"))
    other = scene.endorsements(roster, ("a", "b", "d"), ("b", "d"))
    mine = scene.liar.contents(Endorsement)[-1]
    await refused(scene, scene.endorsed((mine, *other)), "endorses a sum that it is not part of|not fit")
    assert opened(scene) == []


async def test_no_share_is_opened_without_enough_endorsements_of_the_same_lists(scene: Scene) -> None:
    roster = await scene.masked()
    lists = ("a", "b", "c")
    await scene.desk.hear(scene.survivors(*lists))
    true = scene.endorsements(roster, lists, lists)
    await refused(scene, scene.endorsed(true[:2]), "3 endorsements are needed, got 2")
    await refused(scene, scene.endorsed((*true[:2], true[1])), "a worker endorses twice")
    forged = replace(true[2], signature=flipped(true[2].signature, 20))
    await refused(scene, scene.endorsed((*true[:2], forged)), "worker c: its signature does not fit")
    borrowed = replace(true[2], signature=true[1].signature)
    await refused(scene, scene.endorsed((*true[:2], borrowed)), "worker c: its signature does not fit")
    assert opened(scene) == []


async def test_steps_out_of_order_open_nothing(scene: Scene) -> None:
    roster = await scene.dealt()
    await refused(scene, scene.survivors("a", "b", "c"), "survivors are told before sharers")
    await scene.desk.hear(scene.news(scene.sharers()))
    await refused(scene, scene.survivors("a", "b", "c"), "not masked for these sharers")
    others = scene.endorsements(roster, ("a", "b", "c"), ("b", "c"))
    await refused(scene, scene.endorsed(others), "endorsements are told before survivors")
    assert opened(scene) == []


# --- tries and contexts ---


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (lambda: a_task(context=b"x" * 32), "takes the task for another than it sent"),
        (lambda: replace(a_task(), learning_rate_factor=0.5), "takes the task for another than it sent"),
        (lambda: replace(a_task(), adapter=replace(ADAPTER, sha256="cd" * 32)), "takes the task for another"),
        (lambda: replace(a_task(), secure=replace(a_task().secure, clip=9.0)), "takes the task for another"),
        (lambda: _with(threshold=2), "threshold must be"),
        (lambda: _with(colluding=0, threshold=3, minimum=2), "minimum must be from 3"),
        (lambda: _with(drawn=NAMES[:2], electorate=NAMES[:2]), "3 to 128 workers must be drawn"),
        (lambda: _with(electorate=NAMES[1:]), "the electorate must hold all that are drawn; a is not in it"),
        (lambda: _with(drawn=NAMES[1:], colluding=0, threshold=2), "'a' was not drawn"),
    ],
)
async def test_no_keys_are_made_for_a_task_that_does_not_hold_together(
    task: Callable[[], TrainTask], told: str, scene: Scene
) -> None:
    with pytest.raises(SecureRefused, match=told):
        await scene.desk.begin(task(), {"x": torch_spec()})
    assert scene.liar.said == []


def torch_spec() -> Any:
    from tests.security.liar import SCHEMA

    return SCHEMA["x"]


def _with(**changes: Any) -> TrainTask:
    """Not put right: the context would be the coordinator's, if there could be one."""
    try:
        return a_task(**changes)
    except SecureRefused:
        return a_task(**changes, context=bytes(32))


async def test_a_smaller_sum_than_the_run_or_the_owner_spoke_of_is_refused(scene: Scene) -> None:
    scene.policy = replace(scene.policy, floor=4)
    scene.restart()
    with pytest.raises(
        SecureRefused, match="a sum of 3 workers is asked for; the run and this worker's owner spoke of 4"
    ):
        await scene.desk.begin(scene.task, {"x": torch_spec()})


async def test_the_same_try_is_not_told_twice_in_two_ways(scene: Scene) -> None:
    await scene.keys()
    for _ in range(2):
        with pytest.raises(SecureRefused, match="the coordinator tells it otherwise than before"):
            await scene.desk.begin(a_task(clip=9.0), {"x": torch_spec()})
        scene.restart()
    assert len(scene.liar.contents(PublicKeys)) == 1


async def test_after_an_opening_there_is_no_other_try_at_the_round(scene: Scene) -> None:
    roster = await scene.masked()
    await scene.desk.hear(scene.survivors("a", "b", "c"))
    await scene.desk.hear(scene.endorsed(scene.endorsements(roster, ("a", "b", "c"), ("a", "b", "c"))))
    for _ in range(2):
        with pytest.raises(SecureRefused, match="has opened shares of an earlier attempt at the round"):
            await scene.desk.begin(a_task(attempt=2), {"x": torch_spec()})
        scene.restart()
    with pytest.raises(SecureRefused, match="has taken part in a later one"):
        await scene.desk.begin(a_task(number=0), {"x": torch_spec()})
    assert len(opened(scene)) == 1


async def test_another_try_is_with_other_keys_and_news_of_the_first_open_nothing(scene: Scene) -> None:
    first = scene.task
    roster = await scene.masked()
    scene.task = a_task(attempt=2, threshold=4, minimum=4)
    await scene.keys()
    before, after = scene.liar.contents(PublicKeys)
    assert not {before.channel, before.mask, before.commitment} & {
        after.channel,
        after.mask,
        after.commitment,
    }
    scene.task = first
    await scene.desk.hear(scene.survivors("a", "b", "c"))
    await scene.desk.hear(scene.news(Roster(tuple(roster))))
    assert [type(said.content) for said in scene.liar.said][-1] is PublicKeys
    with pytest.raises(SecureRefused, match="has taken part in a later one"):
        await scene.desk.begin(first, {"x": torch_spec()})


async def test_a_second_try_from_which_two_sums_could_be_opened_is_refused(scene: Scene) -> None:
    await scene.keys()
    with pytest.raises(SecureRefused, match="two sums could be opened"):
        await scene.desk.begin(
            a_task(attempt=2, electorate=(*NAMES, "e", "f"), threshold=3), {"x": torch_spec()}
        )
    without = a_task(attempt=2, drawn=NAMES[:3], electorate=NAMES[:3], threshold=3)
    with pytest.raises(SecureRefused, match="d was drawn for an earlier attempt, which it leaves out"):
        await scene.desk.begin(without, {"x": torch_spec()})


async def test_news_of_tries_that_it_never_joined_are_kept_few_and_answered_by_nothing(scene: Scene) -> None:
    roster = tuple(await scene.keys())
    for number in range(100):
        await scene.desk.hear(scene.news(Roster(roster), context=number.to_bytes(32, "big")))
    assert len(scene.liar.said) == 1
    assert len(scene.desk._waiting) == 16


@pytest.mark.parametrize("name", ["secrets", "keys", "round"])
async def test_damaged_secrets_cost_the_try_and_not_the_worker(name: str, scene: Scene) -> None:
    path = scene.folder / "secure" / "try" / name
    await scene.keys()
    path.write_bytes(b"damaged")
    scene.restart()
    # Nobody has shares of them: others will do, if the coordinator takes them.
    await scene.dealt()
    before, after = scene.liar.contents(PublicKeys)
    assert before.mask != after.mask
    path.write_bytes(b"damaged")
    scene.restart()
    with pytest.raises(SecureRefused, match="has lost the keys of try 1; it sits it out"):
        await scene.desk.begin(scene.task, {"x": torch_spec()})
    scene.task = a_task(attempt=2, threshold=4, minimum=4)
    await scene.keys()


# --- a whole worker ---


@pytest_asyncio.fixture
async def liar(certificates: Certificates) -> AsyncIterator[tuple[Liar, Any]]:
    made = Liar()
    yield made, await made.start(certificates)
    await made.server.stop(None)


def a_worker(
    certificates: Certificates, address: Any, folder: Path, policy: SecurePolicy | None = None
) -> tuple[Worker, CoordinatorClient]:
    from common.protocol import PROTOCOL_MAX, PROTOCOL_MIN
    from common.records import JoinRequest
    from common.trust.signing import signing, verifier
    from common.trust.tls import TlsFiles

    shown = certificates.folder / f"worker-{ME}"
    if not shown.exists():
        certificates.issue(Role.WORKER, ME)
    files = TlsFiles.in_folder(shown)
    signed = signing(files)
    policy = policy or SecurePolicy(False, 3, signed.sign, signed.certificate, verifier(files.authority))
    data = PrivateData.read(Source(write_table(folder / "data.csv", 23, 1), Columns()), ME)
    client = CoordinatorClient(
        Endpoint(address, 5.0, open_tls(shown, Role.WORKER)),
        JoinRequest(ME, PROTOCOL_MIN, PROTOCOL_MAX, "test", len(data)),
        Metrics(),
    )
    place = Place(folder, torch.device("cpu"), secure=policy)
    return Worker(ME, client, data, place, InlineCompute(), Metrics()), client


async def until_trouble(liar: Liar, told: str) -> None:
    async with asyncio.timeout(20):
        while not any(told in beat.trouble for beat in liar.beats):
            await asyncio.sleep(0.01)


ASKED: dict[str, tuple[Task, str]] = {
    "an update without masks": (replace(a_task(), secure=None), "an update without masks is asked for"),
    "scores": (EvaluateTask(1, SUB_MODEL, ADAPTER, 60.0, 1), "scores of this worker alone are asked for"),
}


@pytest.mark.parametrize("case", ASKED)
async def test_what_is_this_workers_alone_is_never_sent_in_a_run_of_sums(
    case: str, liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    task, told = ASKED[case]
    coordinator, address = liar
    worker, client = a_worker(certificates, address, tmp_path)
    coordinator.tells.put_nowait(task)
    running = asyncio.create_task(worker.run())
    await until_trouble(coordinator, told)
    coordinator.tells.put_nowait(StopTask(True, "enough"))
    await running
    await client.close()
    assert (coordinator.updates, coordinator.others, coordinator.said) == ([], [], [])
    assert [(j.examples, j.validation) for j in coordinator.joined] == [(0, 0)]
    assert all((b.steps, b.loss) == (0, 0.0) for b in coordinator.beats)
    assert {b.activity for b in coordinator.beats} == {Activity.IDLE}


async def test_masks_in_a_run_that_has_none_are_a_refusal_and_not_a_crash(
    liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    coordinator, address = liar
    coordinator.described = coordinator.joins_to = replace(RUN, secure=None)
    worker, client = a_worker(certificates, address, tmp_path)
    coordinator.tells.put_nowait(a_task())
    running = asyncio.create_task(worker.run())
    await until_trouble(coordinator, "the task sums masked updates, and the run does not")
    coordinator.tells.put_nowait(StopTask(True, "enough"))
    await running
    await client.close()


async def joins(
    liar: tuple[Liar, Any], certificates: Certificates, folder: Path, policy: SecurePolicy | None = None
) -> str:
    """How the worker's start ends: the error's text."""
    worker, client = a_worker(certificates, liar[1], folder, policy)
    with pytest.raises(FedPftError) as raised:
        await worker.run()
    await client.close()
    assert isinstance(raised.value, NotAllowed) and "\n" not in str(raised.value)
    return str(raised.value)


def changed(**changes: Any) -> RunSpec:
    assert RUN.secure is not None
    return replace(RUN, secure=replace(RUN.secure, **changes))


@pytest.mark.parametrize(
    "now", [replace(RUN, secure=None), changed(minimum=2), changed(bits=32), changed(signed=False)]
)
async def test_what_was_described_is_what_is_joined(
    now: RunSpec, liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    liar[0].joins_to = now
    assert "ask the run's owner why [privacy] has changed" in await joins(liar, certificates, tmp_path)
    assert liar[0].joined[0].examples == 0


async def test_class_counts_are_not_told_in_a_run_of_sums(
    liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    liar[0].refuses_join = ClassesWanted("tell your classes first")
    assert "asks for the numbers of this worker's classes" in await joins(liar, certificates, tmp_path)
    assert liar[0].others == []


async def test_unsigned_keys_are_refused_by_who_could_sign(
    liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    liar[0].described = liar[0].joins_to = changed(signed=False)
    assert "the run's keys are not signed" in await joins(liar, certificates, tmp_path)
    assert liar[0].joined == []


@pytest.mark.parametrize(
    ("described", "policy", "told"),
    [
        (replace(RUN, secure=None), SecurePolicy(required=True), "--require-secure forbids"),
        (changed(signed=False), SecurePolicy(required=True), "--require-secure forbids"),
        (RUN, SecurePolicy(floor=4), "--min-aggregate wants 4"),
        (RUN, SecurePolicy(), "give --tls"),
    ],
)
async def test_what_the_workers_owner_does_not_want_is_not_joined(
    described: RunSpec,
    policy: SecurePolicy,
    told: str,
    liar: tuple[Liar, Any],
    certificates: Certificates,
    tmp_path: Path,
) -> None:
    liar[0].described = liar[0].joins_to = described
    assert told in await joins(liar, certificates, tmp_path, policy)
    assert liar[0].joined == [], "the number of examples is told to nobody before"


async def test_masks_switched_off_between_two_starts_of_a_worker_are_noticed(
    liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    liar[0].described = liar[0].joins_to = replace(RUN, secure=None)
    scene = Scene(certificates, liar[0], liar[1], tmp_path)
    await scene.keys()
    await scene.client.close()
    assert "took masked sums of them before" in await joins(liar, certificates, tmp_path)
    assert liar[0].joined == []


async def test_masks_switched_off_by_a_restart_of_the_coordinator_end_the_worker(scene: Scene) -> None:
    path = scene.folder / "masked"
    write_tensors(path, {"x": torch.arange(3)})
    header = UpdateHeader("", 1, ADAPTER.sha256, path.stat().st_size, "cd" * 32, 0, 0.0, 0.0, 1, b"c" * 32)
    await scene.client.join()
    scene.liar.joins_to, scene.liar.forgets = replace(RUN, secure=None), True
    with pytest.raises(NotAllowed, match="takes updates as they are now, and spoke of sums of 3 or more"):
        await scene.client.submit(header, path)
    assert scene.liar.updates == []


@pytest.mark.parametrize(
    ("changes", "tensor"),
    [
        ({}, torch.ones(3)),
        ({"context": b""}, torch.arange(3)),
        ({"examples": 5}, torch.arange(3)),
        ({"loss": 0.5}, torch.arange(3)),
        ({"seconds": 1.5}, torch.arange(3)),
        ({"targets": 15}, torch.arange(3)),
    ],
)
async def test_the_connection_itself_lets_nothing_out_that_could_be_read(
    changes: dict[str, Any], tensor: torch.Tensor, scene: Scene
) -> None:
    path = scene.folder / "update"
    write_tensors(path, {"x": tensor})
    header = UpdateHeader("", 1, ADAPTER.sha256, path.stat().st_size, "cd" * 32, 0, 0.0, 0.0, 1, b"c" * 32)
    with pytest.raises(SecureRefused, match="sends no update without masks"):
        await scene.client.submit(replace(header, **changes), path)
    assert scene.liar.updates == []


async def test_an_honest_forgetting_is_no_lie(scene: Scene) -> None:
    """A coordinator that restarted and is as it was: the worker joins again, and sends what it has."""
    path = scene.folder / "masked"
    write_tensors(path, {"x": torch.arange(3)})
    header = UpdateHeader("", 1, ADAPTER.sha256, path.stat().st_size, "cd" * 32, 0, 0.0, 0.0, 1, b"c" * 32)
    await scene.client.join()
    scene.liar.forgets = True
    await scene.client.submit(header, path)
    assert len(scene.liar.joined) == 2 and scene.liar.updates
    assert UnknownSession is not None


async def test_what_was_refused_as_stale_is_done_again_once_it_is_told_again(
    liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    """A coordinator that has just started again refuses what it will ask for in a moment: the same task."""
    worker, client = a_worker(certificates, liar[1], tmp_path)
    done: list[Any] = []

    async def stale_at_first(model: Any, task: Any) -> None:
        done.append(task)
        if len(done) == 1:
            raise StaleRound("try 1 at round 1 is not under way")

    worker._do = stale_at_first  # type: ignore[method-assign]
    running = asyncio.create_task(worker.run())
    for times in (1, 2, 2):
        liar[0].tells.put_nowait(a_task())
        async with asyncio.timeout(20):
            while len(done) < times:
                await asyncio.sleep(0.01)
    liar[0].tells.put_nowait(StopTask(True, "enough"))
    await running
    await client.close()
    assert done == [a_task()] * 2, "and what was done is not done again"
