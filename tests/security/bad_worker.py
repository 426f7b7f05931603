"""`python -m worker` gone bad: it trains as it should and sends ten times the opposite."""

from typing import Any

from experiments.bad_clients import Attack, poison
from worker import local_model
from worker.cli import main
from worker.train import LocalUpdate, fine_tune


def backwards(*arguments: Any, **settings: Any) -> LocalUpdate:
    """What `fine_tune` gives, poisoned."""
    update = fine_tune(*arguments, **settings)
    return LocalUpdate(poison(update.delta, Attack.SIGN_FLIP, 0), update.loss, update.steps, update.counts)


if __name__ == "__main__":
    local_model.fine_tune = backwards
    main()
