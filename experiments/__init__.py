"""Experiments: many runs of the method, simulated with the services' own code."""
