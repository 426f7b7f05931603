"""What a demo came to: as figures, and as tables for people."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common.records import TaskKind
from common.run_status import Evaluation


def figures(method: str, data: str, folder: Path, model: Path, seconds: float) -> dict[str, Any]:
    """The finished run in `folder`; also exports its model, merged where it is no PEFT adapter. Scores are
    under their measure's name."""
    from coordinator.campaign.status import open_run, stored_status
    from coordinator.owner.export import export

    out = folder / "export"
    store, config = open_run(folder)
    export(folder, out, merge=config.only_merges)
    status, traffic = stored_status(store, config), store.traffic.by_worker()
    store.close()
    measure = "perplexity" if status.task is TaskKind.CAUSAL_LM else "accuracy"
    scores = {(e.round, e.model): _score(e, status.task) for e in status.evaluations}
    models = status.models
    assert models is not None
    return {
        "method": method,
        "data": data,
        "measure": measure,
        "test_examples": _rows(folder / "data" / "test.parquet"),
        "seed": config.run.seed,
        "rounds": status.round,
        "seconds": round(seconds, 1),
        measure: {
            "fm_before": scores[0, "fm"],
            "sub_fm": scores[status.result, "sub_fm"],
            "fm_after": scores.get((status.result, "corrected"), scores[status.result, "fm"]),
        },
        f"{measure}_by_round": {
            model: [scores[number, model] for number in range(status.round + 1)] for model in ("fm", "sub_fm")
        },
        "drift_by_round": {gap.round: gap.drift for gap in status.gaps},
        "parameters": asdict(models),
        "bytes_by_worker": {
            w.worker: {
                "examples": w.examples,
                "received": sum(t.bytes_down for t in w.traffic),
                "sent": sum(t.bytes_up for t in w.traffic),
                "by_round": [asdict(t) for t in traffic[w.worker]],
            }
            for w in status.workers
        },
        "adapter_sha256": status.adapter_sha256,
        "foundation_model": (model if model.name != "model" else model.parent).name,
        "run_directory": str(folder),
        "export": str(out),
    }


def _score(evaluation: Evaluation, task: TaskKind) -> float:
    return math.exp(evaluation.loss) if task is TaskKind.CAUSAL_LM else evaluation.accuracy


def _rows(path: Path) -> int:
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)


def show(console: Console, result: dict[str, Any]) -> None:
    """One run."""
    from coordinator.owner.status_view import megabytes

    measure, parameters = result["measure"], result["parameters"]
    scores = result[measure]
    table = Table(title=f"{measure} on {result['test_examples']:,} held-out examples", title_justify="left")
    for column in ("model", "parameters", "in its layers", measure):
        table.add_column(column, justify="left" if column == "model" else "right")
    fm = (f"{parameters['fm_parameters']:,}", f"{parameters['fm_layer_parameters']:,}")
    sub = (f"{parameters['sub_fm_parameters']:,}", f"{parameters['sub_fm_layer_parameters']:,}")
    before = "FM before (untrained head)" if measure == "accuracy" else "FM before"
    table.add_row(before, *fm, f"{scores['fm_before']:.4f}")
    table.add_row("sub-FM with the adapter", *sub, f"{scores['sub_fm']:.4f}")
    table.add_row("FM after, adapter plugged in", *fm, f"{scores['fm_after']:.4f}", style="bold")
    console.print(table)
    table = Table(title="bytes on the wire", title_justify="left")
    for column in ("worker", "examples", "received", "sent", "sent after round 1, of the FM"):
        table.add_column(column, justify="left" if column == "worker" else "right")
    for name, traffic in result["bytes_by_worker"].items():
        later = [t for t in traffic["by_round"] if t["round"] > 1]
        rounds = max(1, result["rounds"] - 1)
        share = sum(t["bytes_up"] for t in later) / rounds / parameters["fm_bytes"]
        table.add_row(
            name,
            f"{traffic['examples']:,}",
            megabytes(traffic["received"]),
            megabytes(traffic["sent"]),
            f"{share:.2%} a round" if later else "",
        )
    console.print(table)
    console.print(
        f"{result['rounds']} rounds in {result['seconds']:.0f} s; adapter {result['adapter_sha256']}"
    )
    console.print(f"the model is in [bold]{result['export']}[/], for transformers and peft")


def compare(console: Console, results: Sequence[dict[str, Any]], reference: str) -> None:
    """Several methods on the same data, each also by its distance to `reference`."""
    from coordinator.owner.status_view import megabytes

    measure = results[0]["measure"]
    best = next(r for r in results if r["method"] == reference)[measure]["fm_after"]
    title = f"methods on {results[0]['data']}, {results[0]['test_examples']:,} held-out examples"
    table = Table(title=title, title_justify="left")
    columns = (
        "method",
        f"{measure} of the FM after",
        f"to {reference}",
        "to workers",
        "from workers",
        "seconds",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    for result in results:
        score, traffic = result[measure]["fm_after"], result["bytes_by_worker"].values()
        table.add_row(
            result["method"],
            f"{score:.4f}",
            f"{score - best:+.4f}",
            megabytes(sum(t["received"] for t in traffic)),
            megabytes(sum(t["sent"] for t in traffic)),
            f"{result['seconds']:.0f}",
        )
    console.print(table)
