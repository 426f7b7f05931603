"""Help texts as they are written: rich would take "[default: …]" and "[tls]" for markup and hide them."""

from typing import Any

from rich.markup import escape
from typer.core import TyperCommand, TyperGroup


class LiteralGroup(TyperGroup):
    """Commands whose help, and whose options' help, holds no markup."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        _escape(self)


def _escape(command: TyperGroup | TyperCommand) -> None:
    for parameter in command.params:
        if text := getattr(parameter, "help", None):
            parameter.help = escape(text)  # type: ignore[attr-defined]
    if isinstance(command, TyperGroup):
        for inner in command.commands.values():
            if isinstance(inner, TyperGroup | TyperCommand):
                _escape(inner)
    elif command.help:
        command.help = escape(command.help)
