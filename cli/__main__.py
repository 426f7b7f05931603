"""`fedpft`, and `python -m cli`."""

import sys

from common.observability.terminal import show_anyway
from common.runtime.home import provide_home
from common.runtime.signals import listen

# What runs until it is told to end.
SERVICES = (["coordinator"], ["serve"], ["worker"], ["certs", "serve"])


def main() -> None:
    """Entry point: signals count before the rest is imported, which takes seconds."""
    listen(service=any(sys.argv[1 : 1 + len(name)] == name for name in SERVICES))
    provide_home()
    show_anyway()
    from cli.main import main as run

    run()


if __name__ == "__main__":
    main()
