"""Differential privacy: what it costs, and random numbers that nobody else can know."""
