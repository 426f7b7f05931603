"""A run's figures, told to experiment trackers by a process of its own."""
