"""Fault points: inert unless armed, and then exactly where they are told."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import StoreError
from common.runtime import fault_points
from common.runtime.fault_points import TRACE_VARIABLE, VARIABLE, Point, arm, reach
from common.storage.files import publish, write_atomically


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm({})


def test_nothing_happens_unless_armed() -> None:
    arm({})
    assert not fault_points.armed()
    for point in Point:
        reach(point, "anything")


def test_it_strikes_at_the_occurrence_asked_for_and_once() -> None:
    arm({VARIABLE: "step/here#3=enospc"})
    for _ in range(2):
        reach(Point.STEP, "here")
    reach(Point.STEP, "elsewhere")
    with pytest.raises(OSError, match="No space") as caught:
        reach(Point.STEP, "here")
    assert caught.value.errno == errno.ENOSPC
    reach(Point.STEP, "here")


@pytest.mark.parametrize("fault", ["nowhere/x=kill", "step/x=explode", "step/x#y=kill"])
def test_a_fault_that_does_not_exist_is_an_error(fault: str) -> None:
    with pytest.raises(ValueError, match=r"nowhere|explode|y"):
        arm({VARIABLE: fault})


def test_a_trace_names_what_is_passed_in_order(tmp_path: Path) -> None:
    arm({TRACE_VARIABLE: str(tmp_path / "trace")})
    write_atomically(tmp_path / "file", b"content")
    passed = (tmp_path / "trace").read_text().split()
    assert passed == [f"{p}/file" for p in ("file-written", "file-synced", "file-renamed", "folder-synced")]


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        ("file-written/file=kill", "old"),
        ("file-written/file=power", "old"),
        ("file-synced/file=kill", "old"),
        ("file-renamed/file=kill", "new"),
        ("file-renamed/file=power", "old"),
        ("folder-synced/file=power", "new"),
    ],
)
def test_a_process_that_dies_leaves_the_old_file_or_the_new_one(
    fault: str, left: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import os, sys; from pathlib import Path\n"
        "from common.runtime import fault_points; from common.storage import files\n"
        "fault_points.arm(os.environ); files.write_atomically(Path(sys.argv[1]), b'new')"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], env=os.environ | {VARIABLE: fault})
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == left.encode()


def test_after_a_failed_sync_the_content_is_not_trusted(tmp_path: Path) -> None:
    arm({VARIABLE: "file-written/file=eio"})
    temporary = tmp_path / "part"
    temporary.write_bytes(b"content")
    with pytest.raises(OSError, match="error"):
        publish(temporary, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_what_to_free(tmp_path: Path) -> None:
    arm({VARIABLE: "file-written/file=enospc"})
    with pytest.raises(StoreError, match=f"No space left on device; free space on .* {tmp_path}"):
        write_atomically(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []
