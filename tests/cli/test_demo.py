"""What the demo sets for each method: its published figures rest on it."""

import pytest

from cli.demo_settings import Data, Method, settings_of
from common.config.file import parse_config
from common.config.run import RunConfig
from experiments.tuned import HEAD_OF_DEMO

GIVEN = {"model.path": "m", "task.labels": ("a", "b"), "data.public.path": "p.csv"}


def config(method: Method, data: Data = Data.BBC_NEWS) -> RunConfig:
    return parse_config(GIVEN | settings_of(method, data, 3, 7, None), "a test")


@pytest.mark.parametrize("method", [m for m in Method if m is not Method.HEAD_ONLY])
def test_methods_with_an_adapter_train_by_default(method: Method) -> None:
    assert (
        config(method).training
        == RunConfig.model_validate(
            {"model": {"path": "m"}, "task": {"labels": ("a", "b")}, "alignment": {"steps": 0}}
        ).training
    )


@pytest.mark.parametrize("data", [d for d in Data if d in HEAD_OF_DEMO])
def test_the_head_alone_trains_as_was_found_for_it(data: Data) -> None:
    training = config(Method.HEAD_ONLY, data).training
    for key, value in HEAD_OF_DEMO[data].items():
        assert getattr(training, key.removeprefix("training.")) == value
