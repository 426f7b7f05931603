"""Scores of a model that people compare: choices by likelihood, answers by generation, tokens, classes."""
