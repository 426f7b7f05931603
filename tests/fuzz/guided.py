"""The same targets under atheris, which looks for inputs that reach new code; where it is installed.

python -m tests.fuzz.guided header|message -atheris_runs=200000
"""

import atexit
import signal
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["common", "json"]):
    from tests.fuzz.targets import decode_message, header_seeds, judge_header, message_seeds

_TARGETS = {"header": (judge_header, header_seeds), "message": (decode_message, message_seeds)}


def main() -> None:
    """Fuzz one target; a crash or a hang ends with a non-zero exit code."""
    target, seeds = _TARGETS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(seeds()):
            (Path(folder) / str(number)).write_bytes(content)
        # libFuzzer's timer for hangs ticks on while Python, ending, takes the handler of its signal away.
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
        atheris.Setup([*sys.argv, folder, "-timeout=5", "-rss_limit_mb=2048", "-max_len=65536"], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
