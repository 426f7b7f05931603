"""`fedpft-worker`, and `python -m worker`."""

from common.observability.terminal import show_anyway
from common.runtime.home import provide_home
from common.runtime.signals import listen


def main() -> None:
    """Entry point: signals count before the rest is imported, which takes seconds."""
    listen(service=True)
    provide_home()
    show_anyway()
    from worker.cli import main as run

    run()


if __name__ == "__main__":
    main()
