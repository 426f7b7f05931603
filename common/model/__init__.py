"""Models as both sides see them: families, the sub-FM, the adapter, activation counts."""
