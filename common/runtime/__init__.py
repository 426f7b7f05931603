"""What a process runs on: memory, the compute thread, notifications, seeds, fault points."""
