"""Whether the sub-FM can stand in for the FM at all, judged before the first round by what matters there.

The hidden-state error does not tell: it can look fine while nothing that workers tune helps the FM.
"""

from common.errors import RunFailed
from common.run_status import Event, GradientGap
from coordinator.context import RunContext

# A language model's perplexity beside the FM's; and 1 - cosine * ratio of the adapter's gradients. Measured
# on SmolLM2: 3 times and 0.72 for a stand-in that brings two thirds of what the whole FM brings, 23 times and
# 0.98 for one that brings a seventh.
MOST_TIMES, MOST_DRIFT = 10.0, 0.9

_INSTEAD = (
    'choose sub_fm.saliency = "activation" with alignment.method = "closed-form" or "both", a lower '
    "sub_fm.drop_ratio, or more alignment.steps"
)


KINDS = ("stand_in_judged", "stand_in_broken")


def require(run: RunContext, judgement: Event) -> None:
    """Raises RunFailed where the sub-FM was found to be no stand-in, and the configuration is strict."""
    if judgement.kind == "stand_in_broken" and run.config.run.strict:
        raise RunFailed(judgement.text)


def judge(run: RunContext, gap: GradientGap | None, perplexities: tuple[float, float] | None) -> None:
    """Record how good a stand-in the sub-FM is; `perplexities` are the FM's and its own on public data."""
    told: list[str] = []
    broken, figures = False, dict[str, float]()
    if perplexities is not None:
        of_fm, of_sub_fm = perplexities
        # Not finite: worse than any.
        times = of_sub_fm / of_fm
        broken = not times <= MOST_TIMES
        told.append(f"its perplexity on public data is {of_sub_fm:.2f}, the FM's {of_fm:.2f}")
        figures = {"fm_perplexity": of_fm, "sub_fm_perplexity": of_sub_fm}
    if gap is not None:
        broken = broken or not gap.drift <= MOST_DRIFT
        told.append(f"its gradient's drift {gap.drift:.2f}")
        figures["drift"] = gap.drift
    if not told:
        return
    run.metrics.stood_in(broken, perplexities)
    text = " and ".join(told)
    if not broken:
        run.events.record("stand_in_judged", f"the sub-FM as a stand-in: {text}", 0, "", **figures)
        return
    text = f"the sub-FM is no stand-in for the FM: {text}; {_INSTEAD}"
    run.events.record("stand_in_broken", text, 0, "", **figures)
