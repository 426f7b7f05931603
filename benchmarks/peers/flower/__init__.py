"""Flower, doing the same rounds; it runs in an environment of its own."""
