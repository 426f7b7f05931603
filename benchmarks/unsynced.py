"""A service that does not wait for its files to reach the disk: what it costs but for the disk's own time.

    python -m benchmarks.unsynced MODULE [ARGUMENT ...]

The files are the same, written and renamed alike; only fsync returns at once. SQLite's own syncs stay.
"""

import os
import runpy
import sys


def main() -> None:
    """Run the module in this process."""
    os.fsync = lambda fd: None
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
