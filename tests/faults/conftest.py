"""The run that all others are compared with, and the table at the end."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.faults.federation import Federation, Material, Outcome
from tests.faults.secure import SecureFederation, Summed

Make = Callable[..., Federation]


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A model and data."""
    return Material.make(tmp_path_factory.mktemp("material"))


@pytest.fixture
def make(tmp_path: Path, material: Material) -> Iterator[Make]:
    """Makes federations, and ends what is left of them."""
    made: list[Federation] = []

    def one(name: str = "federation", kind: type[Federation] = Federation, **fields: Any) -> Federation:
        made.append(kind(tmp_path / name, material, **fields))
        return made[-1]

    yield one
    for federation in made:
        federation.end()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Federation]:
    """A run in which nothing happens, with all fault points that its processes passed in *.trace."""
    federation = Federation(tmp_path_factory.mktemp("undisturbed"), material)
    try:
        for name in ("coordinator", *federation.workers):
            federation.start(name, trace=federation.folder / f"{name}.trace")
        federation.supervise()
        yield federation
    finally:
        federation.end()


@pytest.fixture(scope="session")
def reference(undisturbed: Federation) -> Outcome:
    """How that run ended."""
    return undisturbed.outcome()


@pytest.fixture(scope="session")
def undisturbed_sums(
    tmp_path_factory: pytest.TempPathFactory, material: Material
) -> Iterator[SecureFederation]:
    """A run in which nothing happens, with all fault points that its processes passed in *.trace."""
    federation = SecureFederation(tmp_path_factory.mktemp("undisturbed-sums") / "federation", material)
    try:
        for name in ("coordinator", *federation.workers):
            federation.start(name, trace=federation.folder / f"{name}.trace")
        federation.supervise()
        yield federation
    finally:
        federation.end()


@pytest.fixture(scope="session")
def sums(undisturbed_sums: SecureFederation) -> Summed:
    """How that run ended."""
    return undisturbed_sums.summed()


@pytest.fixture
def make_secure(make: Make) -> Make:
    return lambda *name, **fields: make(*name, kind=SecureFederation, **fields)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Faults by kind: how many, how many survived, how many struck, seconds of a run."""
    rows: dict[str, list[tuple[bool, dict[str, Any], float]]] = defaultdict(list)
    figures: list[str] = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            told = dict(report.user_properties)
            if report.when == "call" and "fault" in told:
                rows[told["fault"]].append((outcome == "passed", told, report.duration))
            if report.when == "call" and "figures" in told:
                figures.append(told["figures"])
    if not rows and not figures:
        return
    terminalreporter.section("faults")
    if rows:
        head = ("fault", "cases", "survived", "distinct points", "median s", "longest s")
        terminalreporter.line("{:<44} {:>6} {:>9} {:>16} {:>9} {:>10}".format(*head))
    for fault in sorted(rows):
        cases = rows[fault]
        seconds = [duration for _, _, duration in cases]
        points = {told.get("point", "") for _, told, _ in cases}
        terminalreporter.line(
            f"{fault:<44} {len(cases):>6} {sum(ok for ok, _, _ in cases):>9} {len(points):>16} "
            f"{median(seconds):>9.1f} {max(seconds):>10.1f}"
        )
    for line in figures:
        terminalreporter.line(line)
