"""What a tracker has been told of a run, on disk, so that nothing is told twice and nothing left out."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.storage.files import write_atomically
from coordinator.tracking.figures import Figure

# Figures by name and round.
Values = dict[str, dict[int, float]]


@dataclass
class Told:
    """Of one tracker; `path` is the file that remembers it."""

    path: Path
    run: str = ""
    """By what the tracker knows the run, where it gave a name of its own."""
    parameters: bool = False
    report: str = ""
    """Digest of the adapter of the report that it has."""
    values: Values = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Told":
        """What the file remembers; nothing where there is none, or none that can be read."""
        try:
            found = json.loads(path.read_bytes())
            values = {
                str(name): {int(number): float(value) for number, value in by_round.items()}
                for name, by_round in found["values"].items()
            }
            return cls(path, str(found["run"]), bool(found["parameters"]), str(found["report"]), values)
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            # The tracker itself is asked, too: what it holds is not told again.
            return cls(path)

    def save(self) -> None:
        """Make it durable. Raises StoreError."""
        content = asdict(self)
        del content["path"]
        write_atomically(self.path, json.dumps(content).encode())

    def holds(self, figure: Figure) -> bool:
        """Whether the tracker has this value; another one of that round is of before a rewind."""
        value = self.values.get(figure.name, {}).get(figure.round)
        # TensorBoard keeps float32.
        return value is not None and math.isclose(value, figure.value, rel_tol=1e-6, abs_tol=1e-12)

    def add(self, figures: Iterable[Figure]) -> None:
        """It has these now."""
        for figure in figures:
            self.values.setdefault(figure.name, {})[figure.round] = figure.value

    def add_found(self, found: Mapping[str, Mapping[int, float]]) -> None:
        """It holds these, although its process may have died before it remembered."""
        for name, by_round in found.items():
            self.values.setdefault(name, {}).update(by_round)
