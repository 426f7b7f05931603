"""policy.toml: each rule, with a run that fits and one that does not; what is wrong with a file."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from common.errors import CannotTrain, ConfigError, NotAllowed, StoreError
from common.private_task import DpSpec, DpUnit
from common.records import (
    AdapterSpec,
    AdapterTargets,
    ArtifactKind,
    ArtifactRef,
    RunSpec,
    TaskKind,
    TaskSpec,
    TrainingSpec,
)
from common.run_offers import Construction, RunTerms
from common.secure_task import SecureSpec
from worker.policy import Policy, example_policy, load_policy, require_allowed
from worker.quiet import parse_window, quiet_until
from worker.rest import HOURS_FILE, Rest, TrainingHours

RUN = RunSpec(
    "run",
    TaskSpec(TaskKind.TEXT_CLASSIFICATION, ("no", "yes"), 16, False),
    AdapterSpec(AdapterTargets.ATTENTION, 8, 32.0, 0.1),
    TrainingSpec(2, 16, 2e-3, 5e-3, 0.01, 1.0),
    7,
    secure=SecureSpec(3, 32, False, 1, signed=True),
    dp=DpSpec(DpUnit.EXAMPLE, 8.0, 1e-5, 1.0, 64, 5),
    terms=RunTerms(5, Construction.FFN_PRUNING, "admin/ann", "spring"),
)
HERE = "hub.example:7070"
FILED = replace(RUN, terms=RunTerms(5, Construction.FULL))
PLAIN = replace(RUN, secure=None, dp=None)
BY_WORKER = replace(RUN, dp=DpSpec(DpUnit.WORKER, 8.0, 1e-5, 1.0, 64, 5, 2.0))
OLD = replace(RUN, terms=None)
TOO_MANY_LABELS = replace(
    RUN, task=replace(RUN.task, labels=(), labels_file=ArtifactRef(ArtifactKind.LABELS, "ab" * 32, 9))
)
ASKING = replace(RUN, task=replace(RUN.task, labels=()), asks_classes=True)

# A rule, a run that fits, one that does not, and what is said of it.
RULES: list[tuple[str, dict[str, Any], RunSpec, RunSpec | None, str]] = [
    ("nothing", {}, PLAIN, None, ""),
    ("coordinator", {"who": {"coordinators": [HERE, "other:1"]}}, RUN, None, ""),
    ("another coordinator", {"who": {"coordinators": ["other:1"]}}, RUN, RUN, "not among who.coordinators"),
    ("admin", {"who": {"admins": ["admin/ann"]}}, RUN, FILED, "submitted by the coordinator's own config"),
    ("another admin", {"who": {"admins": ["admin/bob", ""]}}, FILED, RUN, "submitted by admin/ann"),
    ("admin, untold", {"who": {"admins": ["admin/ann"]}}, RUN, OLD, "older than the terms of a run"),
    ("kind", {"task": {"kinds": ["text-classification"]}}, RUN, None, ""),
    (
        "another kind",
        {"task": {"kinds": ["causal-lm"]}},
        RUN,
        RUN,
        "text-classification is not among task.kinds",
    ),
    ("labels", {"task": {"label_sets": [["a"], ["yes", "no"]]}}, RUN, None, ""),
    ("other labels", {"task": {"label_sets": [["no", "yes", "?"]]}}, RUN, RUN, "none of task.label_sets"),
    ("labels to come", {"task": {"label_sets": [["a"]]}}, TOO_MANY_LABELS, RUN, "none of task.label_sets"),
    ("labels asked for", {"task": {"label_sets": [["a"]]}}, ASKING, RUN, "none of task.label_sets"),
    (
        "construction",
        {"task": {"forbidden": ["full"]}},
        RUN,
        FILED,
        "construction full is among task.forbidden",
    ),
    ("construction, untold", {"task": {"forbidden": ["full"]}}, RUN, OLD, "older than the terms of a run"),
    ("rounds", {"limits": {"rounds": 5}}, RUN, None, ""),
    ("too many rounds", {"limits": {"rounds": 4}}, RUN, RUN, "the run has 5 rounds, limits.rounds allows 4"),
    ("rounds, untold", {"limits": {"rounds": 5}}, RUN, OLD, "older than the terms of a run"),
    ("epochs", {"limits": {"epochs": 2}}, OLD, None, ""),
    ("too many epochs", {"limits": {"epochs": 1}}, RUN, RUN, "2 epochs a round, limits.epochs allows 1"),
    ("sums", {"privacy": {"secure": True}}, RUN, PLAIN, "could see this worker's updates"),
    ("unit", {"privacy": {"unit": "example"}}, RUN, PLAIN, "promises no differential privacy"),
    (
        "other unit",
        {"privacy": {"unit": "worker"}},
        BY_WORKER,
        RUN,
        "of each example, privacy.unit asks for each",
    ),
    ("epsilon", {"privacy": {"epsilon": 8.0}}, RUN, PLAIN, "promises no differential privacy"),
    ("too much", {"privacy": {"epsilon": 7.5}}, RUN, RUN, "epsilon is 8, privacy.epsilon allows 7.5"),
]


@pytest.mark.parametrize(
    ("given", "fits", "other", "told"), [r[1:] for r in RULES], ids=[r[0] for r in RULES]
)
def test_a_rule_lets_in_what_fits_and_nothing_else(
    given: dict[str, Any], fits: RunSpec, other: RunSpec | None, told: str
) -> None:
    policy = Policy.model_validate(given)
    if fits is not other:
        require_allowed(policy, fits, HERE)
    if other is not None:
        with pytest.raises(NotAllowed, match=r"^this worker's policy: ") as caught:
            require_allowed(policy, other, HERE)
        assert told in str(caught.value)


def test_all_that_is_against_a_run_is_said_at_once() -> None:
    policy = Policy.model_validate({"limits": {"rounds": 3, "epochs": 1}, "task": {"forbidden": ["full"]}})
    with pytest.raises(NotAllowed, match=r"construction full.*5 rounds.*2 epochs"):
        require_allowed(policy, FILED, HERE)


def test_unsigned_keys_are_no_secure_sums() -> None:
    assert RUN.secure is not None
    run = replace(RUN, secure=replace(RUN.secure, signed=False))
    with pytest.raises(NotAllowed, match=r"privacy\.secure forbids"):
        require_allowed(Policy.model_validate({"privacy": {"secure": True}}), run, HERE)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[limits]\nrounds = 0", "limits.rounds must be >= 1, got 0"),
        ("[limits]\nhours_a_day = 25", "limits.hours_a_day must be <= 24"),
        ("[privacy]\nepsilon = 0", "privacy.epsilon must be > 0"),
        ("[task]\nforbidden = ['fulll']", "task.forbidden.0 must be"),
        ("[task]\nkinds = ['chess']", "task.kinds.0 must be"),
        ("[who]\nadmins = ['ann']", 'must be "admin/NAME"'),
        ("[who]\ncoordinators = ['hub']", "who.coordinators"),
        ("[hours]\nquiet = ['25:00-26:00']", 'must be like "22:00-06:00"'),
        ("[limit]\nrounds = 3", "unknown key limit (known there: who, task, limits, privacy, hours)"),
        ("[limits\n", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_explained_in_a_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_policy(path)
    assert str(caught.value).startswith(f"{path}: ") and told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`fedpft worker policy` writes one"):
        load_policy(tmp_path / "policy.toml")


def test_the_example_allows_everything(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(example_policy())
    assert load_policy(path) == Policy() == load_policy(None)


# Windows of the week; 2026-11-23 is a Monday.


@pytest.mark.parametrize(
    ("window", "now", "until"),
    [
        ("08:00-18:00", "23 08:00", "23 18:00"),
        ("08:00-18:00", "23 18:00", None),
        ("08:00-18:00", "23 07:59", None),
        ("22:00-06:00", "23 23:30", "24 06:00"),
        ("22:00-06:00", "24 05:59", "24 06:00"),
        ("22:00-06:00", "24 06:00", None),
        ("00:00-24:00", "20 12:00", "28 00:00"),
        ("Mon-Fri 08:00-18:00", "27 12:00", "27 18:00"),
        ("Mon-Fri 08:00-18:00", "28 12:00", None),
        ("Sat-Mon 08:00-18:00", "23 12:00", "23 18:00"),
        ("Sun 22:00-06:00", "23 05:00", "23 06:00"),
        ("Sun 22:00-06:00", "24 05:00", None),
    ],
)
def test_a_window_is_quiet_from_its_begin_up_to_its_end(window: str, now: str, until: str | None) -> None:
    def at(text: str) -> datetime:
        return datetime.strptime(f"2026-11-{text}", "%Y-%m-%d %H:%M")

    assert quiet_until([parse_window(window)], at(now)) == (until and at(until))


def test_windows_that_follow_each_other_are_one() -> None:
    windows = [parse_window("06:00-12:00"), parse_window("12:00-14:00")]
    assert quiet_until(windows, datetime(2026, 11, 23, 7)) == datetime(2026, 11, 23, 14)


@pytest.mark.parametrize(
    "text", ["8:00-18:00", "08:00", "08:00-08:00", "24:00-06:00", "08:60-09:00", "Mo 08:00-09:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be like"):
        parse_window(text)


# Rest.


class Clock:
    def __init__(self) -> None:
        self.now, self.seconds = datetime(2026, 11, 23, 12), 0.0


def test_quiet_hours_that_begin_end_a_training(tmp_path: Path) -> None:
    clock = Clock()
    rest = Rest([parse_window("13:00-14:00")], None, tmp_path, lambda: clock.now)
    rest.require()
    with rest.training():
        rest.look()
        clock.now = datetime(2026, 11, 23, 13)
        with pytest.raises(CannotTrain, match="quiet hours until Mon 14:00"):
            rest.look()
    assert not (tmp_path / HOURS_FILE).exists()


def test_hours_of_a_day_are_counted_over_restarts_and_begin_anew_at_midnight(tmp_path: Path) -> None:
    clock = Clock()

    def rest() -> Rest:
        return Rest((), 2.0, tmp_path, lambda: clock.now, lambda: clock.seconds)

    first = rest()
    with first.training():
        clock.seconds += 3600
        first.look()
        clock.seconds += 3000
    second = rest()
    second.require()
    assert TrainingHours(tmp_path).today(clock.now.date()) == 6600
    with second.training():
        clock.seconds += 1000
        with pytest.raises(CannotTrain, match="the 2 hours of training that a day has are spent"):
            second.look()
    assert "spent" in rest().why()
    clock.now = datetime(2026, 11, 24, 0, 1)
    assert rest().why() == ""


def test_a_broken_count_of_hours_is_no_free_day(tmp_path: Path) -> None:
    (tmp_path / HOURS_FILE).write_text("{}")
    with pytest.raises(StoreError, match=r"limits\.hours_a_day"):
        Rest((), 2.0, tmp_path).require()
