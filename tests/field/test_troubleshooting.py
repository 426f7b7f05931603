"""The lines that docs/operations.md tells people to look for are those that the program says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_HELD = "\0"


def said() -> list[str]:
    """Every text in the source, with a mark where values go in."""
    texts = []
    for package in ("cli", "common", "coordinator", "worker"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.JoinedStr():
                        parts = [p.value if isinstance(p, ast.Constant) else _HELD for p in node.values]
                        texts.append("".join(map(str, parts)))
                    case ast.Constant(value=str() as text):
                        texts.append(re.sub(r"\{\w*\}", _HELD, text))
    return texts


def lines() -> list[str]:
    """What the section has in the first column of its tables, as lines of the program."""
    page = (ROOT / "docs/operations.md").read_text()
    section = page.split("## When something looks wrong")[1].split("\n## ")[0]
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| ")]
    return [line for cell in cells for line in re.findall(r"`([^`]*…[^`]*)`", cell)]


TEXTS = "\n".join(said())


@pytest.mark.parametrize("line", lines())
def test_every_line_to_look_for_is_said(line: str) -> None:
    pieces = [piece for piece in re.split("…", line) if len(piece.strip(" :;,.'()")) > 3]
    assert pieces, f"{line!r} is nothing to look for"
    missing = [piece for piece in pieces if piece.strip() not in TEXTS]
    assert not missing, f"{line!r}: nothing says {missing}"


def test_the_section_has_lines() -> None:
    assert len(lines()) > 30
