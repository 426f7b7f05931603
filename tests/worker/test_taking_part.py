"""What of a worker's reasons leaves its host."""

import pytest

from common.errors import AgainstPolicy, BudgetSpent, DataError, FedPftError, NotAllowed
from worker.taking_part import told_outside


@pytest.mark.parametrize("kind", [NotAllowed, BudgetSpent, DataError])
def test_only_a_rule_of_the_owners_is_told_outside(kind: type[FedPftError]) -> None:
    text = "with 17 examples one of them could be told outright"
    assert told_outside(AgainstPolicy(text)) == text
    assert told_outside(kind(text)) == f"it cannot take part: {kind.__name__}"
