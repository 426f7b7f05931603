"""What a run remembers: artifacts, decisions, events, traffic; and what it may forget."""
