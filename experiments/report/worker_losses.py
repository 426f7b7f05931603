"""What a run's updates tell of training: each worker's losses, or, where updates come masked, their sums."""

from collections import defaultdict

from coordinator.storage.store import Store
from experiments.report.document import Cell, Column, Plot, PlotKind, Section, Series, Table


def sections(store: Store, done: int, private: bool, each_worker: bool = True) -> list[Section]:
    """After so many rounds; nothing of a run whose workers tell no losses, for differential privacy."""
    if private:
        return []
    return _sums(store) or (_losses(store, done) if each_worker else [])


def _sums(store: Store) -> list[Section]:
    """Where updates come masked: what their sums tell."""
    found = store.secure.sums()
    if not found:
        return []
    columns = (
        Column("round"),
        Column("workers", ",d"),
        Column("examples", ",d"),
        Column("mean training loss", ".4f", "nats"),
        Column("scaled down", ",d"),
    )
    rows = tuple((n, s.workers, s.examples, s.loss, s.clipped) for n, s in found.items())
    losses = Series("all workers", tuple(map(float, found)), tuple(s.loss for s in found.values()))
    plot = Plot("losses", "Training loss by round", PlotKind.LINES, "round", "loss (nats)", (losses,))
    return [Section("Workers' losses, summed", (), (plot, Table("sums", "Sums", columns, rows)))]


def _losses(store: Store, done: int) -> list[Section]:
    by_worker: dict[str, dict[int, float]] = defaultdict(dict)
    rows: list[tuple[Cell, ...]] = []
    for number in range(1, done + 2):
        for update in store.updates(number):
            by_worker[update.worker][number] = update.loss
            rows.append((number, update.worker, update.examples, update.loss, update.seconds or None))
    if not rows:
        return []
    lines = tuple(
        Series(worker, tuple(map(float, sorted(losses))), tuple(losses[n] for n in sorted(losses)))
        for worker, losses in sorted(by_worker.items())
    )
    columns = (
        Column("round"),
        Column("worker"),
        Column("examples", ",d"),
        Column("mean training loss", ".4f", "nats"),
        Column("training", ".1f", "s"),
    )
    parts: list[Table | Plot] = [Table("updates", "Updates received", columns, tuple(rows))]
    # Many workers, drawn a few at a time, make no lines.
    if len(lines) <= 12:
        parts.insert(
            0, Plot("losses", "Training loss by round", PlotKind.LINES, "round", "loss (nats)", lines)
        )
    return [Section("Workers' losses", (), tuple(parts))]
