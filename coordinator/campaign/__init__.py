"""A run from beginning to end: the loop, a round's updates, what happens when, where it stands."""
