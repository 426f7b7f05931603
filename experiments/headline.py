"""The one figure by which runs are compared: accuracy, or what the task or data set has instead."""

import math
from collections.abc import Mapping
from typing import Any

from common.data.presets import Preset
from common.model.metrics import PER_CLASS
from common.records import TaskKind
from common.run_status import METRIC_TITLES
from common.task_forms import FORMS, Answer

ACCURACY = "accuracy"
_BY_ANSWER = {
    Answer.CLASS: ACCURACY,
    Answer.CLASSES: "macro_f1",
    Answer.NUMBER: "pearson",
    Answer.TAGS: "entity_f1",
}


def headline_of(kind: TaskKind) -> str:
    """The metric's name as scores have it. Raises KeyError for a language model: it has none."""
    return _BY_ANSWER[FORMS[kind].answer]


def headline_of_preset(preset: Preset) -> str:
    """A data set's own; GLUE's F1 is of the second class alone."""
    return f"f1{PER_CLASS}{preset.labels[1]}" if preset.metric == "f1" else preset.metric


def value_of(score: Mapping[str, Any], metric: str) -> float:
    """A metric out of a score's `accuracy` and `metrics`; NaN where it is undefined."""
    found = score["accuracy"] if metric == ACCURACY else score.get("metrics", {}).get(metric)
    return math.nan if found is None else float(found)


def title_of(metric: str) -> str:
    """For people, as it stands within a sentence."""
    if PER_CLASS in metric:
        return "F1 of " + metric.partition(PER_CLASS)[2]
    return METRIC_TITLES.get(metric, metric)
