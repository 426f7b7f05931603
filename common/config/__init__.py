"""What a run can be set to, and run.toml."""
