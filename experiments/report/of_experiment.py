"""An experiment's folder → a document: accuracy, differences, costs, and what the experiment asks about."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.errors import DataError
from experiments.catalogue import ATTACKS, EXPERIMENTS
from experiments.experiment import EXPERIMENT_FILE
from experiments.report import alignments, attacks, comparison, costs, gaps, margins, ratios, salience, tuning
from experiments.report.document import Document, Section
from experiments.report.results import Results

_FURTHER: Mapping[str, Sequence[Callable[[Results], list[Section]]]] = {
    "compare": (comparison.papers,),
    "tune": (tuning.sections,),
    "ratio": (ratios.sections,),
    "alignment": (alignments.sections,),
    "saliency": (salience.sections,),
    "theory": (gaps.sections,),
    "cost": (costs.shares,),
    "correction": (),
    "variants": (),
    "margin": (margins.sections,),
}


def document(folder: Path) -> Document:
    """A report of what is done so far. Raises DataError when the folder holds no experiment."""
    try:
        about = json.loads((folder / EXPERIMENT_FILE).read_text())
        if about["fixed"]["experiment"] == ATTACKS:
            return attacks.document(folder)
        experiment = EXPERIMENTS[about["fixed"]["experiment"]]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} holds no experiment: {EXPERIMENT_FILE} cannot be read: {error}") from error
    results = Results.read(folder, experiment, about)
    if not results.cells:
        raise DataError(f"{folder} holds no finished run yet; the command that began it goes on")
    further = [section for part in _FURTHER[experiment.name] for section in part(results)]
    if experiment.is_search:
        # Its cells are trials of methods, not variants.
        told, sections = tuning.lead(results), further
    else:
        told = comparison.findings(results)
        sections = comparison.accuracies(results) + tuning.trained_with(results) + further
        sections += costs.costs(results)
    form = ", quick form" if about["quick"] else ""
    return Document(
        f"Experiment {experiment.name}{form}",
        (experiment.question, *told),
        tuple(sections),
        _facts(results),
    )


def _facts(results: Results) -> dict[str, str]:
    about = results.about
    fixed, sizes = about["fixed"], about["fixed"]["sizes"]
    sample = fixed["sample"] or "all"
    private = ", ".join(f"{n:,}" for n in sorted({c["examples"] for c in results.cells.values()}))
    return {
        "command": about["command"],
        "model": Path(fixed["model"]).name if Path(fixed["model"]).exists() else fixed["model"],
        "data": f"{Path(fixed['data']).name}: {private} private examples, "
        f"at most {sizes['test']:,} to test, {sizes['public']:,} public",
        "clients": f"{fixed['clients']}, {sample} of them in every round; {fixed['rounds']} rounds",
        "seeds": ", ".join(str(seed) for seed in results.seeds),
        "settings": ", ".join(f"{k} = {v}" for k, v in fixed["settings"].items()),
        "machine": f"{about['machine']}; {fixed['threads']} thread(s) a run",
        "versions": ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        "begun": about["begun"],
    }
