"""The attacks' findings → a document: each attack beside its bound, and beside the literature's figures."""

import json
from pathlib import Path

from common.errors import DataError
from experiments.attacks import membership, properties
from experiments.attacks.findings import (
    CLAIMED_EXAMPLES,
    CLAIMED_WORKERS,
    FALSE_ALARMS,
    NEAR_CHANCE,
    Findings,
    claimed,
)
from experiments.attacks.scale import QUESTION
from experiments.attacks.views import VIEWS
from experiments.experiment import EXPERIMENT_FILE
from experiments.report.document import Cell, Column, Document, Plot, PlotKind, Section, Series, Table

_HOW = {
    membership.GRADIENT: "by its gradient",
    membership.LOSS: "by its loss",
    properties.BIAS: "head's bias",
    properties.COUNTS: "activation counts",
}
# Of other models, data and settings than ours: what they are is said beside them.
_MEMBERSHIP_ANCHORS = (
    "Beside it: LoRA-Leak (arXiv 2507.18302) reports an AUC of 0.775 from a final fine-tuned model; ProjRes "
    "(2604.21197) reports near 100 % from raw gradients of single batches. Other models and data.",
)
_LABEL_ANCHORS = (
    "Beside it: RLU (arXiv 2405.00955) and GDBR (2412.12640) report more than 80 % of labels recovered from "
    "a worker's update. Other models and data.",
)
_WORTH_ANCHORS = (
    ("OPT-6.7B, HellaSwag, layers dropped", 50.5, 28.3, 27.9, 52.1),
    ("OPT-1.3B, HellaSwag, distilled", 41.5, 35.1, 37.0, 43.3),
    ("OPT-6.7B, OpenBookQA, layers dropped", 27.6, 15.8, 23.4, 33.8),
)


def document(folder: Path) -> Document:
    """A report of what is done so far. Raises DataError when the folder holds no attacks."""
    try:
        about = json.loads((folder / EXPERIMENT_FILE).read_text())
        fixed = about["fixed"]
        findings = Findings.read(folder)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} holds no attacks: {EXPERIMENT_FILE} cannot be read: {error}") from error
    parts = [*_memberships(findings), *_labels(findings), *_worth(findings)]
    if not parts:
        raise DataError(f"{folder} holds no finished attack yet; the command that began it goes on")
    broken = findings.broken()
    verdict = (
        [f"Broken: {line}." for line in broken]
        if broken
        else [
            f"No bound is broken: in sums of {CLAIMED_WORKERS} or more no attack tells a worker's labels "
            f"better than the sum's mean does, and with {CLAIMED_EXAMPLES} or more examples a worker none "
            f"has a lower end of its AUC's interval above {NEAR_CHANCE:g}."
        ]
    )
    scale = fixed["scale"]
    facts = {
        "command": about["command"],
        "model": Path(fixed["model"]).name if Path(fixed["model"]).exists() else fixed["model"],
        "data": f"{fixed['texts']} (membership, worth), {fixed['documents']} (labels)",
        "scale": ", ".join(f"{key} {value}" for key, value in scale.items() if key != "settings"),
        "settings": ", ".join(f"{k} = {v}" for k, v in (scale["settings"] | fixed["settings"]).items()),
        "machine": f"{about['machine']}; {fixed['threads']} thread(s) a run",
        "versions": ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        "begun": about["begun"],
    }
    return Document("Experiment attacks", (QUESTION, *verdict), tuple(parts), facts)


def _memberships(findings: Findings) -> list[Section]:
    found = findings.membership
    if not found:
        return []
    rows: list[tuple[Cell, ...]] = [
        (
            f"{m.size}, {VIEWS[m.view].title}",
            _HOW[m.attack],
            m.members,
            m.others,
            m.auc.value,
            m.auc.low,
            m.auc.high,
            m.hits.value,
            m.hits.low,
            m.hits.high,
            "claimed" if claimed(m.view, m.size) else "",
        )
        for m in found
    ]
    columns = (
        Column("examples a worker, what is seen"),
        Column("attack"),
        Column("members"),
        Column("others"),
        Column("AUC", ".3f"),
        Column("from", ".3f"),
        Column("to", ".3f"),
        Column(f"found at {FALSE_ALARMS:.0%} false alarms", ".3f"),
        Column("from", ".3f"),
        Column("to", ".3f"),
        Column("bound"),
    )
    notes = (
        "Round 1, one look. Each text's score is compared with what the other looks of the same kind give "
        "for the same text. Intervals: 95 %, bootstrap over workers. AUC 0.5 is chance.",
        *_MEMBERSHIP_ANCHORS,
    )
    sizes = list(dict.fromkeys(m.size for m in found))
    plots = [
        Plot(
            f"membership-{attack}",
            f"Membership {_HOW[attack]}",
            PlotKind.BARS,
            "examples a worker",
            "AUC",
            tuple(
                Series(
                    view.title,
                    tuple(str(m.size) for m in own),
                    tuple(m.auc.value for m in own),
                    tuple(m.auc.half for m in own),
                )
                for view in VIEWS.values()
                if (own := [m for m in found if m.view == view.name and m.attack == attack])
            ),
        )
        for attack in membership.ATTACKS
    ]
    text = (
        f"Was a text trained on? Workers have {', '.join(map(str, sizes))} examples. The coordinator knows "
        "the text and its label, and looks at the update that its worker sent, or at the sum that it is in.",
    )
    table = Table("membership", "Membership", columns, tuple(rows), notes)
    return [Section("Membership", text, (table, *plots))]


def _labels(findings: Findings) -> list[Section]:
    found = findings.labels
    if not found:
        return []
    rows: list[tuple[Cell, ...]] = [
        (
            f"{VIEWS[label.view].title}, {_HOW[label.attack]}",
            label.workers,
            label.distance.value,
            label.distance.half if label.looks > 1 else None,
            label.uniform,
            label.by_mean,
            label.gain.value,
            label.gain.low if label.looks > 1 else None,
            label.correlation,
            label.largest_right,
            label.to_mean,
            "claimed" if label.judged else "",
        )
        for label in found
    ]
    columns = (
        Column("what is seen"),
        Column("workers"),
        Column("distance", ".3f"),
        Column("±", ".3f"),
        Column("uniform guess", ".3f"),
        Column("guess by the mean", ".3f"),
        Column("gain over the mean", "+.3f"),
        Column("from", "+.3f"),
        Column("correlation", ".2f"),
        Column("largest class right", ".0%"),
        Column("distance to the mean", ".3f"),
        Column("bound"),
    )
    notes = (
        "Distances are total variations between shares of classes: 0 is right, 1 wrong altogether. The mean "
        "is that of the workers in the sum, which a sum is there to tell; of single updates, of all workers.",
        *_LABEL_ANCHORS,
    )
    titles = tuple(dict.fromkeys(VIEWS[label.view].title for label in found))
    series = [
        Series(
            _HOW[attack],
            titles,
            tuple(label.distance.value for label in found if label.attack == attack),
            tuple(label.distance.half for label in found if label.attack == attack),
        )
        for attack in properties.ATTACKS
    ]
    guess = tuple(label.by_mean for label in found if label.attack == properties.BIAS)
    series.append(Series("guess by the mean", titles, guess))
    plot = Plot("labels", "Distance from a worker's shares", PlotKind.BARS, "", "distance", tuple(series))
    text = (
        "Which shares of the classes does a worker have? The coordinator trains shadow workers on labelled "
        "documents of its own, and learns from theirs what a worker's update means.",
    )
    return [Section("Labels", text, (Table("labels", "Labels", columns, tuple(rows), notes), plot))]


def _worth(findings: Findings) -> list[Section]:
    found = findings.worth
    if found is None:
        return []
    ours = (found.fm_before, found.sub_fm_before, found.sub_fm_tuned, found.plugged_in)
    rows: list[tuple[Cell, ...]] = [
        ("this run", *(100 * value for value in ours), 100 * found.fm_tuned, 100 * found.margin.value),
        *((name, zero, sub, tuned, in_, None, in_ - tuned) for name, zero, sub, tuned, in_ in _WORTH_ANCHORS),
    ]
    columns = (
        Column("what"),
        Column("FM untuned", ".1f", "%"),
        Column("sub-FM untuned", ".1f", "%"),
        Column("sub-FM tuned", ".1f", "%"),
        Column("FM plugged in", ".1f", "%"),
        Column("FM tuned whole", ".1f", "%"),
        Column("plugged in − sub-FM", "+.1f", "points"),
    )
    low, high = 100 * found.margin.low, 100 * found.margin.high
    met = {
        "the FM untuned is worse than plugged in": found.fm_before < found.plugged_in,
        "the sub-FM tuned is worse than the FM plugged in": found.margin.low > 0,
        "plugged in is within a point of an FM tuned whole": found.plugged_in > found.fm_tuned - 0.01,
    }
    text = (
        "Offsite-tuning's criterion (arXiv 2302.04870) for what protects the FM's owner: what a worker holds "
        "in the end, the tuned sub-FM, must be worth less than the FM with the adapter in it. The margin's "
        f"95 % interval is {low:+.1f} to {high:+.1f} points.",
        *(f"{'Met' if holds else 'Not met'}: {what}." for what, holds in met.items()),
        "This is measured, not claimed: no bound hangs on it. The other rows are offsite-tuning's own.",
    )
    return [Section("What a worker has", text, (Table("worth", "What a worker has", columns, tuple(rows)),))]
