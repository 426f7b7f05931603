"""Secure aggregation: sums of what workers send, and nothing of a single one; the protocol's pure half."""
