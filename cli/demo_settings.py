"""What `fedpft demo` can run, and the settings of each."""

from enum import StrEnum
from typing import Any


class Method(StrEnum):
    """fedpft: the method; fedpetuning: the whole FM at the workers; fedot: fewer whole layers;
    head-only: no adapter."""

    FEDPFT = "fedpft"
    FEDPETUNING = "fedpetuning"
    FEDOT = "fedot"
    HEAD_ONLY = "head-only"


class Data(StrEnum):
    """Which packaged data set, and what for: BBC News (5 classes), tweets (2), Fashion-MNIST (images,
    5 classes); or the text of BBC News for SmolLM2, a real language model."""

    BBC_NEWS = "bbc-news"
    TWEETS = "tweets"
    FASHION_MNIST = "fashion-mnist"
    BBC_SMOLLM2 = "bbc-smollm2"

    @property
    def is_language(self) -> bool:
        """Whether a language model is tuned: no classes, no head."""
        return self is Data.BBC_SMOLLM2


# What the demo sets besides paths, by dotted key of run.toml.
_BY_DATA: dict[Data, dict[str, Any]] = {
    Data.BBC_NEWS: {
        "rounds.count": 4,
        "task.max_length": 64,
        "realignment.every": 2,
        "realignment.learning_rate": 3e-4,
    },
    Data.TWEETS: {"rounds.count": 5, "task.max_length": 64},
    Data.FASHION_MNIST: {"rounds.count": 5, "task.kind": "image-classification"},
    # On two cores: what a few minutes are enough for.
    Data.BBC_SMOLLM2: {
        "rounds.count": 2,
        "task.kind": "causal-lm",
        "task.max_length": 128,
        "sub_fm.saliency": "activation",
        "alignment.method": "closed-form",
        "alignment.closed_form_batches": 4,
        "training.batch_size": 4,
        "training.learning_rate": 5e-4,
        "training.tokens_per_step": 256,
        "gradient_gap.batch_size": 4,
    },
}
_BY_METHOD: dict[Method, dict[str, Any]] = {
    Method.FEDPFT: {},
    Method.FEDPETUNING: {"sub_fm.construction": "full"},
    Method.FEDOT: {"sub_fm.construction": "layer-drop"},
    Method.HEAD_ONLY: {"sub_fm.construction": "full", "adapter.targets": "none"},
}


def settings_of(method: Method, data: Data, workers: int, seed: int, rounds: int | None) -> dict[str, Any]:
    """What the demo sets of run.toml besides paths, by dotted key."""
    settings = {
        "run.seed": seed,
        "alignment.steps": 200,
        "rounds.workers": workers,
        "rounds.minimum": workers,
        "server.listen": "127.0.0.1:0",
        "server.metrics": "127.0.0.1:0",
        "server.page": "127.0.0.1:0",
        "server.heartbeat_seconds": 1.0,
        "compute.threads": 2,
    }
    settings |= _BY_DATA[data] | _BY_METHOD[method]
    if method is Method.HEAD_ONLY:
        from experiments.tuned import HEAD_OF_DEMO

        # The adapters' methods do well by default; a head alone learns next to nothing at these rates.
        settings |= HEAD_OF_DEMO.get(data, {})
    return settings | ({"rounds.count": rounds} if rounds else {})
