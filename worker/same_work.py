"""Whether two tasks ask for the same: what is under way for the one is then not begun anew for the other."""

from dataclasses import replace

from common.records import ModelTask, Task, TrainTask


def same_try(a: Task, b: Task) -> bool:
    """Whether two tasks differ in nothing but the time left: one of them was sent again."""
    if isinstance(a, ModelTask) and isinstance(b, ModelTask):
        return replace(a, seconds_left=0) == replace(b, seconds_left=0)
    return a == b


def same_work(a: Task, b: Task) -> bool:
    """Whether what one task asks for serves the other: what a round's second try asks for does."""
    if isinstance(a, ModelTask) and isinstance(b, ModelTask):
        return same_try(_of_any_try(a), _of_any_try(b))
    return False


def _of_any_try(task: ModelTask) -> ModelTask:
    if isinstance(task, TrainTask):
        return replace(task, attempt=0, secure=None)
    return replace(task, attempt=0)
