"""`fedpft experiment attacks`: run, report, and fail when a bound that is claimed does not hold."""

from rich.console import Console

from common.errors import RunFailed
from experiments.attacks.scale import QUESTION, AttackSetup
from experiments.attacks.suite import conduct
from experiments.report.attacks import document
from experiments.report.files import write_document
from experiments.report.terminal import show


def attack(setup: AttackSetup, parallel: int, console: Console) -> None:
    """Raises what `conduct` does, and RunFailed, after the report, that names every broken bound."""
    console.print(f"[bold]attacks[/]: {QUESTION}")
    found = conduct(setup, parallel, console)
    report = document(setup.folder)
    page = write_document(setup.folder / "report", report)
    show(report, console)
    console.print(f"report: {page}")
    if broken := found.broken():
        raise RunFailed(f"a claimed bound is broken: {'; '.join(broken)}")
