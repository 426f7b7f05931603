"""What people's own models, data and machines do: many cases, each a second or more; not the fast tier."""

import signal
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Who is started by nohup ignores SIGHUP, and so would everything that these tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
