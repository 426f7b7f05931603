"""Workers' updates → the next adapter: how fast against memory itself, and in how much memory.

    python -m benchmarks.aggregation [--json FILE]

Updates of 100 MB in files in the page cache, as a round finds them. GB/s are of updates: their bytes over
the seconds. The limit beside them is `torch.add_` of tensors that are in memory, as large as an update.
Validation is the check for NaN and infinite values that an update passes before it gets its receipt.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks.measuring import (
    Ratio,
    Spread,
    Target,
    benchmark_parser,
    figure,
    interleave,
    report,
    table,
    timed,
)
from common.config.choices import AggregationRule
from common.records import ArtifactKind
from common.runtime.compute import one_thread
from common.storage.schema import check_finite
from common.storage.tensor_header import in_file_order
from common.storage.tensors import TensorFile, to_bytes
from coordinator.algorithms.aggregation import Settings, Update, each_aggregated
from coordinator.modelling.round_files import passing
from coordinator.storage.store import Store

COUNTS = (2, 8, 32)
# As LoRA of this rank on attention and FFN of MiniLM's sub-FM: 72 tensors, 100 MB in float32.
_RANK, _HIDDEN, _LAYERS, _MAPS = 904, 384, 6, 6


class Updates:
    """Files of updates, and an adapter that they change."""

    def __init__(self, folder: Path, count: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self._folder = folder
        for number in range(count + 1):
            (folder / str(number)).write_bytes(to_bytes(_tensors(draw)))
        self.bytes = (folder / "0").stat().st_size

    @property
    def start(self) -> TensorFile:
        return TensorFile(self._folder / "0")

    def loaded(self, count: int) -> tuple[dict[str, Tensor], list[Update]]:
        """The adapter and so many updates, in memory."""
        whole = (Update(u.worker, u.weight, _copied(u.delta)) for u in self.first(count))
        return _copied(self.start), list(whole)

    def each(self, count: int) -> list[TensorFile]:
        """So many updates' files, to read one after the other."""
        return [TensorFile(self._folder / str(i)) for i in range(1, count + 1)]

    def first(self, count: int) -> list[Update]:
        """So many updates, to read side by side."""
        paths = {f"w{i:03}": self._folder / str(i) for i in range(1, count + 1)}
        return [Update(name, 100, TensorFile(path, count + 1)) for name, path in paths.items()]


def _tensors(draw: torch.Generator) -> dict[str, Tensor]:
    shapes = {"A": (_RANK, _HIDDEN), "B": (_HIDDEN, _RANK)}
    return {
        f"{layer}.{number}.{kind}": 1e-3 * torch.randn(shape, generator=draw)
        for layer in range(_LAYERS)
        for number in range(_MAPS)
        for kind, shape in shapes.items()
    }


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def validate(updates: Iterable[Mapping[str, Tensor]]) -> None:
    """As the inbox does, one update after the other."""
    with one_thread():
        for update in updates:
            check_finite(update)


def combine(start: Mapping[str, Tensor], updates: list[Update], rule: AggregationRule) -> None:
    """Aggregate; keep nothing."""
    with passing(rule):
        for _ in each_aggregated(start, updates, {}, Settings(rule)):
            pass


def whole(store: Store, updates: Updates, count: int) -> None:
    """Validate, aggregate, hash, write, sync and name the next adapter."""
    validate(updates.each(count))
    start = updates.start
    schema = start.schema()
    order = in_file_order(schema)
    with one_thread():
        found = each_aggregated(start, updates.first(count), {}, Settings(), order)
        adapter = store.artifacts.add_each(
            ArtifactKind.ADAPTER, schema, ((one.name, one.tensor) for one in found)
        )
    store.artifacts.path(adapter.sha256).unlink()


def added(count: int, size: int) -> Callable[[], None]:
    """The limit: that many tensors of `size` bytes, added up in memory by as many threads as torch takes."""
    total, terms = torch.zeros(size // 4), [torch.randn(size // 4) for _ in range(2)]

    def run() -> None:
        for number in range(count):
            total.add_(terms[number % 2], alpha=0.1)

    return run


def alone(work: Callable[[], None]) -> Callable[[], None]:
    """The same by one thread, as the coordinator does it."""

    def run() -> None:
        with one_thread():
            work()

    return run


@contextmanager
def extra_memory() -> Iterator[list[int]]:
    """The most resident bytes within, over those before, of this process."""
    found: list[int] = []
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")
    yield found
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    found.append(1024 * peak - before)


def main() -> None:
    """The command."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="of everything [7]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        updates = Updates(folder, max(COUNTS))
        store = Store(folder / "run")
        # Memory first: later on, what earlier work has left in the process would do again.
        figures = {
            "memory": memory(updates),
            "steps": steps(store, updates, options.repeats),
            "rules": rules(updates, max(3, options.repeats // 2)),
        }
        store.close()
    ratio = figures["steps"]["mean, validated"]["ratio"].value
    what = "mean with validation against torch.add_, 8 × 100 MB"
    report(options.json, figures, [Target(what, ratio, 0.5, True)])


def steps(store: Store, updates: Updates, repeats: int, count: int = 8) -> dict[str, Any]:
    """What each part of a round's aggregation adds."""

    def mean() -> None:
        combine(updates.start, updates.first(count), AggregationRule.MEAN)

    def validated() -> None:
        validate(updates.each(count))
        mean()

    start, loaded = updates.loaded(count)

    def in_memory() -> None:
        validate(update.delta for update in loaded)
        combine(start, loaded, AggregationRule.MEAN)

    contestants: dict[str, Callable[[], None]] = {
        "torch.add_": added(count, updates.bytes),
        "torch.add_, one thread": alone(added(count, updates.bytes)),
        "mean, validated, of updates in memory": in_memory,
        "validation": lambda: validate(updates.each(count)),
        "mean": mean,
        "mean, validated": validated,
        "the same, hashed, written and synced": lambda: whole(store, updates, count),
    }
    found = interleave({name: timed(work) for name, work in contestants.items()}, repeats)
    return _told(f"{count} × {updates.bytes / 1e6:.0f} MB", found, count * updates.bytes)


def rules(updates: Updates, repeats: int, count: int = 8) -> dict[str, Any]:
    """Every rule, without validation or writing."""

    def combined(rule: AggregationRule) -> None:
        combine(updates.start, updates.first(count), rule)

    contestants: dict[str, Callable[[], float]] = {"torch.add_": timed(added(count, updates.bytes))}
    for rule in AggregationRule:
        contestants[str(rule)] = timed(partial(combined, rule))
    return _told(f"rule, {count} updates", interleave(contestants, repeats), count * updates.bytes)


def _told(what: str, found: dict[str, list[float]], size: int) -> dict[str, Any]:
    """Figures by contestant, told as a table."""
    figures: dict[str, Any] = {}
    for name, seconds in found.items():
        rate = Spread.of([size / 1e9 / one for one in seconds])
        ratio = Ratio.of(found["torch.add_"], seconds)
        figures[name] = {"gigabytes_per_second": rate, "ratio": ratio}
    rows = [(name, f["gigabytes_per_second"], f["ratio"]) for name, f in figures.items()]
    print(table((what, "GB/s of updates", "× torch.add_"), rows) + "\n", flush=True)
    return figures


def memory(updates: Updates) -> dict[str, Any]:
    """Memory against the number of updates, by rule; megabytes over what the process held before."""
    figures: dict[str, Any] = {}
    for rule in (AggregationRule.MEAN, AggregationRule.MEDIAN, AggregationRule.MULTI_KRUM):
        figures[str(rule)] = {}
        for count in COUNTS:
            # Krum needs five; and for all but the mean the figure is clear before the wait gets long.
            if rule is not AggregationRule.MEAN and not 5 <= count <= 8:
                continue
            with extra_memory() as extra:
                combine(updates.start, updates.first(count), rule)
            figures[str(rule)][count] = extra[0] / 1e6
    columns = ("rule: MB more at", *(f"{count} updates" for count in COUNTS))
    rows = [(r, *(figure(f[c]) if c in f else "-" for c in COUNTS)) for r, f in figures.items()]
    print(table(columns, rows) + "\n", flush=True)
    return figures


if __name__ == "__main__":
    main()
