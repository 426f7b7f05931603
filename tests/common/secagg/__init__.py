"""Secure aggregation: exact, secret, and blaming the right side."""
