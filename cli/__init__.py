"""The `fedpft` command: both services, the demo, and what an owner needs around a run."""
