"""What variants cost: parameters, bytes, seconds, a worker's step."""

from experiments.experiment import FULL_FINE_TUNING
from experiments.report.comparison import short_title
from experiments.report.document import Cell, Column, Plot, PlotKind, Section, Series, Table
from experiments.report.results import Figures, Results
from experiments.summary import Mean

_MEGA = 1e6


def costs(results: Results) -> list[Section]:
    """Sizes and seconds of every variant, over all splits and seeds."""
    parts: list[Table | Plot] = [_sizes(results), _seconds(results)]
    return [Section("Costs", (), tuple(parts))]


def _any_split(results: Results, variant: str) -> str:
    return next(
        s for s in results.splits if any((s, variant, seed) in results.cells for seed in results.seeds)
    )


def _value(results: Results, variant: str, *path: str) -> float | None:
    """Mean of a figure over the seeds of one split; None where it is not recorded."""

    def at(figures: Figures) -> float | None:
        found = figures
        for key in path:
            if key not in found:
                return None
            found = found[key]
        return float(found)  # type: ignore[arg-type]

    mean: Mean | None = results.mean(_any_split(results, variant), variant, at)
    return mean.mean if mean else None


def _sizes(results: Results) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for variant in results.variants:
        layers, whole = (
            _value(results, variant, "parameters", f"{of}_layer_parameters") for of in ("sub_fm", "fm")
        )
        adapter = _value(results, variant, "parameters", "adapter_parameters")
        moved = [_value(results, variant, "bytes", key) for key in ("once", "down", "up", "patches")]
        assert layers is not None and whole is not None and adapter is not None
        rows.append(
            (
                results.title(variant),
                round(layers),
                100 * layers / whole,
                round(adapter),
                *(None if m is None else m / _MEGA for m in moved),
            )
        )
    columns = (
        Column("variant"),
        Column("layers' parameters at a worker", ",d"),
        Column("of the FM's", ".0f", "%"),
        Column("tuned parameters", ",d"),
        Column("down, once", ".2f", "MB"),
        Column("down, each round", ".2f", "MB"),
        Column("up, each round", ".2f", "MB"),
        Column("re-aligned neurons, in all", ".2f", "MB"),
    )
    note = "Per worker that takes part; sizes of files, without what gRPC and TCP add. MB: 10⁶ bytes."
    return Table("sizes", "What a worker holds and what moves", columns, tuple(rows), (note,))


def _seconds(results: Results) -> Table:
    phases = ["building", "training", "aggregating", "measuring", "re-aligning", "scoring"]
    rows: list[tuple[Cell, ...]] = []
    for variant in results.variants:
        training = _value(results, variant, "seconds", "training")
        examples = _value(results, variant, "trained_examples")
        rate = examples / training if examples and training else None
        rows.append((results.title(variant), *(_value(results, variant, "seconds", p) for p in phases), rate))
    columns = (
        Column("variant"),
        *(Column(p, ".1f", "s") for p in phases),
        Column("examples per second", ".1f"),
    )
    note = (
        "Wall time of one simulated run, mean over seeds, with other runs beside it on the same machine. "
        "Building is done once for all runs that share it; training is of all clients, one after the other."
    )
    return Table("seconds", "Where the time went", columns, tuple(rows), (note,))


def step_table(results: Results, titles: dict[str, str]) -> Table:
    """A worker's measured step, by variant, against the first of `titles`."""
    first = results.steps[next(iter(titles))]
    rows: list[tuple[Cell, ...]] = []
    for name, title in titles.items():
        step = results.steps[name]
        rows.append(
            (
                title,
                step["milliseconds"],
                step["spread"],
                step["milliseconds"] / first["milliseconds"],
                step["flops"] / 1e9,
                step["flops"] / first["flops"],
                step["parameters"],
                step["trained_parameters"],
            )
        )
    columns = (
        Column("variant"),
        Column("step", ".0f", "ms"),
        Column("spread", ".0f", "ms"),
        Column("ratio", ".2f"),
        Column("operations", ".1f", "GFLOP"),
        Column("ratio", ".2f"),
        Column("parameters", ",d"),
        Column("trained", ",d"),
    )
    note = (
        "An optimiser step on one batch of 16 examples: median, and distance of the quartiles. The variants "
        "take turns in one process. Operations are those of matrix products, forward and backward."
    )
    return Table("steps", "A worker's step", columns, tuple(rows), (note,))


def shares(results: Results) -> list[Section]:
    """Computation and bytes as shares of full-model fine-tuning and of FedPETuning."""
    if not results.steps:
        return []
    titles = {FULL_FINE_TUNING: "full-model fine-tuning (FedAvg)"}
    titles |= {v: results.title(v) for v in results.variants if v in results.steps}
    parts: list[Table | Plot] = [
        step_table(results, titles),
        _traffic(results, titles),
        _shares_plot(results, titles),
    ]
    return [Section("Against tuning the whole model", (), tuple(parts))]


def _moved(results: Results, name: str) -> tuple[float, float]:
    """Bytes once, and both ways in a round; full-model fine-tuning moves the whole model both ways."""
    if name == FULL_FINE_TUNING:
        variant = results.experiment.reference
        whole = _value(results, variant, "parameters", "fm_bytes") or 0.0
        return 0.0, 2 * whole
    found = [_value(results, name, "bytes", key) or 0.0 for key in ("once", "down", "up")]
    return found[0], found[1] + found[2]


def _traffic(results: Results, titles: dict[str, str]) -> Table:
    rounds = results.about["fixed"]["rounds"]
    full = _moved(results, FULL_FINE_TUNING)
    whole = _moved(results, results.experiment.reference)
    rows: list[tuple[Cell, ...]] = []
    for name, title in titles.items():
        once, each = _moved(results, name)
        total, ten = once + rounds * each, once + 10 * each
        rows.append(
            (
                title,
                once / _MEGA,
                each / _MEGA,
                total / _MEGA,
                total / (full[0] + rounds * full[1]),
                ten / (whole[0] + 10 * whole[1]),
            )
        )
    columns = (
        Column("variant"),
        Column("once", ".2f", "MB"),
        Column("each round, both ways", ".2f", "MB"),
        Column(f"after {rounds} rounds", ".2f", "MB"),
        Column("of full fine-tuning", ".3f"),
        Column("of FedPETuning after 10 rounds", ".2f"),
    )
    note = (
        "Per worker, if it takes part in every round. Embeddings are part of what moves once, and stay whole."
    )
    return Table("traffic", "Bytes per worker", columns, tuple(rows), (note,))


def _shares_plot(results: Results, titles: dict[str, str]) -> Plot:
    first = results.steps[results.experiment.reference]
    names = [n for n in titles if n in results.steps]
    labels = tuple("full fine-tuning" if n == FULL_FINE_TUNING else short_title(results, n) for n in names)
    series = (
        Series(
            "time of a step",
            labels,
            tuple(results.steps[n]["milliseconds"] / first["milliseconds"] for n in names),
        ),
        Series(
            "operations of a step", labels, tuple(results.steps[n]["flops"] / first["flops"] for n in names)
        ),
    )
    return Plot("shares", "A worker's step against FedPETuning's", PlotKind.BARS, "", "ratio", series)
