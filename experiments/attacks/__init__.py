"""Attacks on what the two sides see of each other, on the engine's own updates, and what they may reach."""
