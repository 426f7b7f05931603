"""What the steps of a run have come to, told: as events and metrics."""

from collections.abc import Sequence

from common.listing import first_few
from common.run_status import AT_WORKERS, SCORED, Evaluation, Validation
from coordinator.campaign.best import Scores
from coordinator.campaign.status import reading
from coordinator.context import RunContext
from coordinator.storage.class_counts import StoredClasses
from coordinator.storage.corrections import StoredCorrection
from coordinator.storage.releases import Release
from coordinator.storage.secure import StoredSum


def classes_agreed(run: RunContext, classes: StoredClasses) -> None:
    """The run goes by the classes that workers have told."""
    named = [f"{label} {count:,}" for label, count in zip(classes.labels, classes.counts, strict=True)]
    text = f"{len(named)} classes, of {classes.workers} worker(s) together: {first_few(named, 20)}"
    run.events.record("classes_agreed", text, workers=classes.workers)


def aligned(run: RunContext, number: int, before: float, after: float) -> None:
    """The sub-FM was aligned after a round; hidden-state errors."""
    run.metrics.alignment_error.labels("before").set(before)
    run.metrics.alignment_error.labels("after").set(after)
    level = "neuron" if number else "layer"
    text = f"{level}-level alignment: hidden-state error {before:.4f} → {after:.4f}"
    run.events.record("aligned", text, number, error_before=before, error_after=after)


def evaluated(run: RunContext, evaluations: Sequence[Evaluation]) -> None:
    """Models were scored on the owner's test data, all after one round."""
    for evaluation in evaluations:
        run.metrics.evaluated(evaluation)
    measure, shown = reading(evaluations, run.config.task.kind)
    figures = {f"{e.model}_accuracy": e.accuracy for e in evaluations}
    figures |= {f"{e.model}_loss": e.loss for e in evaluations}
    number = evaluations[0].round
    told = ", ".join(f"of the {SCORED[model]} {value}" for model, value in shown.items())
    run.events.record("evaluated", f"round {number}: {measure} {told}", number, "", **figures)


def validated(run: RunContext, score: Validation) -> None:
    """The sub-FM was scored at the workers."""
    run.metrics.validated(score)
    measure, shown = reading([score.as_evaluation], run.config.task.kind)
    told = (
        f"{shown[AT_WORKERS]} at {score.workers} workers, on {score.examples} examples that they keep aside"
    )
    figures = {"accuracy": score.accuracy, "loss": score.loss}
    figures |= {"workers": score.workers, "examples": score.examples}
    run.events.record(
        "validated", f"round {score.round}: {measure} of the sub-FM {told}", score.round, "", **figures
    )


def not_validated(run: RunContext, number: int, answers: int) -> None:
    """Too few workers have answered."""
    least = run.config.validation.minimum
    text = (
        f"round {number}: {answers} of at least {least} workers have scored; it has no score at the workers"
    )
    run.events.record("validation_short", text, number)


def stopped_early(run: RunContext, number: int, scores: Scores) -> None:
    """The scores have not become better for too long; told once, also after a restart."""
    last = run.store.events.last_of(("stopped_early",), 1)
    if not (last and last[0].round == number):
        whose = "at the workers" if scores.at_workers else "on the test data"
        told = f"no better {run.config.rounds.best_by} {whose} since round {scores.best}"
        best = scores.best or 0
        run.events.record("stopped_early", f"ends early, after round {number}: {told}", number, "", best=best)


def corrected(run: RunContext, number: int, correction: StoredCorrection) -> None:
    """The FM was corrected, or that helped too little."""
    before, after = correction.before, correction.after
    run.metrics.corrected(before, after)
    text = f"divergence from its teacher on held-out public data {before:.4f} → {after:.4f} nats"
    figures = {"divergence_before": before, "divergence_after": after}
    if correction.adapter is not None:
        run.events.record("corrected", f"the FM is corrected: {text}", number, "", **figures)
    else:
        told = f"{text}: the correction helps too little, and is left out"
        run.events.record("correction_left_out", told, number, "", **figures)


def summed(run: RunContext, number: int, total: StoredSum) -> None:
    """A round's masked updates have been added up, and nothing else of them was seen."""
    clipped = f"; {total.clipped} of them scaled down to the clip" if total.clipped else ""
    run.metrics.secure_workers.set(total.workers)
    # Under differential privacy there is none.
    loss = "" if run.config.private else f", mean training loss {total.loss:.3f}"
    run.events.record(
        "updates_summed",
        f"round {number}: the sum of {total.workers} masked updates{loss}{clipped}",
        number,
        workers=total.workers,
        loss=total.loss,
        clipped=total.clipped,
    )


def noised(run: RunContext, number: int, total: StoredSum, release: Release) -> None:
    """A round's updates have been added up with noise that hides each worker."""
    below = "" if release.below is None else f", some {min(max(release.below, 0), 1):.0%} of them below it"
    run.events.record(
        "updates_summed",
        f"round {number}: the sum of {total.workers} updates, scaled down to {release.clip:.3g}{below}, with "
        f"noise of {release.noise:.3g} times that",
        number,
        workers=total.workers,
        clip=release.clip,
        noise=release.noise,
    )
