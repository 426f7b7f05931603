"""`fedpft-coordinator`, and `python -m coordinator`."""

from common.runtime.signals import listen


def main() -> None:
    """Entry point: signals count before the rest is imported, which takes seconds."""
    listen(service=True)
    from coordinator.cli import main as run

    run()


if __name__ == "__main__":
    main()
